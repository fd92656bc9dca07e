//! Spare UDP sockets, by which a node behind a NAT of the worst kind opens many ports at once: opened when the engine first
//! sends by one, closed when it says so, and read by a thread of their own, for most of them hear nothing ever.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use mesh_io::udp::{UdpConfig, UdpSocket};
use mesh_io::wait::{Interest, Poller};

use super::inbound::Inward;
use super::worker::Link;

/// How many there can be.
pub(super) const N_SPARES: u16 = 256;

/// Sockets that are watched as one; when one of them has something all are read.
const GROUP: usize = 8;
const WAKER: u32 = (N_SPARES as usize / GROUP) as u32;

/// The sockets, shared by all threads; looking one up takes no lock.
#[derive(Debug)]
pub(super) struct Spares {
    slots: Box<[ArcSwapOption<UdpSocket>]>,
    poller: Poller,
}

impl Spares {
    /// None is open yet.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            slots: (0..N_SPARES).map(|_| ArcSwapOption::empty()).collect(),
            poller: Poller::new()?,
        })
    }

    /// The socket of a number, if it is open.
    pub(super) fn find(&self, number: u16) -> Option<Arc<UdpSocket>> {
        self.slots.get(usize::from(number))?.load_full()
    }

    /// The same, opened if it is not. To be called by one thread alone.
    pub(super) fn open(&self, number: u16) -> io::Result<Arc<UdpSocket>> {
        let number = usize::from(number);
        let slot = self.slots.get(number).ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(socket) = slot.load_full() {
            return Ok(socket);
        }
        let socket = Arc::new(UdpSocket::bind(UdpConfig::default())?);
        // The group's number is below that of the waker. A socket that is closed leaves the poller by itself.
        let group = u32::try_from(number / GROUP).unwrap_or(WAKER);
        self.poller.add(socket.as_fd(), group, Interest::Readable)?;
        slot.store(Some(Arc::clone(&socket)));
        Ok(socket)
    }

    /// Closes all but these.
    pub(super) fn keep(&self, numbers: &[u16]) {
        for (number, slot) in (0..).zip(&self.slots) {
            if !numbers.contains(&number) {
                slot.store(None);
            }
        }
    }

    /// Reads the sockets until the link's waker is used.
    pub(super) fn run(&self, link: &Link) -> io::Result<()> {
        self.poller
            .add(link.waker.as_fd(), WAKER, Interest::Readable)?;
        // Most nodes never open one.
        let mut inward = None;
        while !link.waker.is_woken() {
            let ready = self.poller.wait(None)?;
            let numbers = (0..N_SPARES).zip(&self.slots);
            let is_ready = |number: u16| ready.readable & (1 << (usize::from(number) / GROUP)) != 0;
            for (number, slot) in numbers.filter(|(number, _)| is_ready(*number)) {
                if let Some(socket) = slot.load_full() {
                    let inward = inward.get_or_insert_with(|| Inward::new(link.tun));
                    inward.read_spare(link, number, &socket);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    #[test]
    fn sockets_are_opened_when_used_and_closed_when_told() {
        let spares = Spares::new().unwrap();
        assert!(spares.find(3).is_none());
        let (third, last) = (spares.open(3).unwrap(), spares.open(N_SPARES - 1).unwrap());
        assert_ne!(third.local_port(), last.local_port());
        assert_eq!(spares.open(3).unwrap().local_port(), third.local_port());
        assert!(spares.open(N_SPARES).is_err() && spares.find(N_SPARES).is_none());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, last.local_port()));
        third.send(to, b"hello", 5).unwrap();
        let ready = spares.poller.wait(None).unwrap();
        assert_eq!(ready.readable, 1 << (WAKER - 1));
        spares.keep(&[3]);
        assert!(spares.find(3).is_some() && spares.find(N_SPARES - 1).is_none());
        spares.keep(&[]);
        assert!(spares.find(3).is_none());
    }
}
