//! How a packet thread sleeps: until one of its descriptors is ready, somebody wakes it, or time is up.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Wakes every thread whose [`Poller`] watches it, from the first [`Waker::wake`] on and for good.
#[derive(Debug)]
pub struct Waker {
    fd: OwnedFd,
    is_woken: AtomicBool,
}

impl Waker {
    /// Opens one.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self {
            fd: owned(fd)?,
            is_woken: AtomicBool::new(false),
        })
    }

    /// Wakes all, now and later.
    ///
    /// # Errors
    /// When the kernel refuses the write, which it does not for an event descriptor that was never read.
    pub fn wake(&self) -> io::Result<()> {
        self.is_woken.store(true, Ordering::Release);
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the pointer and the length are those of `one`.
        let n = unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Whether it was used: for a thread too busy ever to wait.
    #[must_use]
    pub fn is_woken(&self) -> bool {
        self.is_woken.load(Ordering::Acquire)
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Tells one thread that something waits for it, again and again. Rung while it rings, it costs no system call.
#[derive(Debug)]
pub struct Bell {
    fd: OwnedFd,
    is_ringing: AtomicBool,
}

impl Bell {
    /// Opens one that is silent.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self {
            fd: owned(fd)?,
            is_ringing: AtomicBool::new(false),
        })
    }

    /// Rings until it is answered. Whatever it is rung for must be there before.
    pub fn ring(&self) {
        if self.is_ringing.swap(true, Ordering::AcqRel) {
            return;
        }
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the pointer and the length are those of `one`. A full counter, the one thing that can go wrong, rings too.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Silences it; what it was rung for is there now.
    pub fn answer(&self) {
        let mut count = [0; 8];
        // SAFETY: the pointer and the length are those of `count`. Nothing is read from one that is silent.
        unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        self.is_ringing.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a descriptor is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Nothing for now.
    Nothing,
    /// Something to read.
    Readable,
    /// Something to read, or room to write.
    Both,
}

impl Interest {
    const fn events(self) -> u32 {
        // The kernel's flags are small positive numbers.
        match self {
            Self::Nothing => 0,
            Self::Readable => libc::EPOLLIN as u32,
            Self::Both => (libc::EPOLLIN | libc::EPOLLOUT) as u32,
        }
    }
}

/// Which descriptors are ready, or broken: use them and see. Bit `n` stands for token `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    /// Those with something to read.
    pub readable: u64,
    /// Those with room to write.
    pub writable: u64,
}

/// Descriptors looked at in one call.
const N_EVENTS: usize = 16;

/// Watches some descriptors at once, each under a token from 0 to 63. A descriptor that is ready is told of again and again
/// until it is read empty.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Opens one that watches nothing.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { epoll })
    }

    /// Watches one more. It must stay open for as long as the poller is used.
    ///
    /// # Errors
    /// `InvalidInput` for a token above 63, else those of epoll_ctl(2).
    pub fn add(&self, fd: BorrowedFd<'_>, token: u32, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    /// Watches it for something else.
    ///
    /// # Errors
    /// As [`Self::add`], and when it was never added.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u32, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    fn control(
        &self,
        operation: libc::c_int,
        fd: BorrowedFd<'_>,
        token: u32,
        interest: Interest,
    ) -> io::Result<()> {
        if token >= u64::BITS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut event = libc::epoll_event {
            events: interest.events(),
            u64: token.into(),
        };
        // SAFETY: both descriptors are open, and `event` lives through the call.
        let rc = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                operation,
                fd.as_raw_fd(),
                &raw mut event,
            )
        };
        check(rc)
    }

    /// Sleeps until something is ready; without a timeout, for as long as it takes. Nothing is ready when the time is up.
    ///
    /// # Errors
    /// Those of epoll_wait(2), except an interruption, after which it sleeps on.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let millis = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
        });
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; N_EVENTS];
        let n = loop {
            // SAFETY: the pointer and the count are those of `events`.
            let n = unsafe {
                libc::epoll_wait(
                    self.epoll.as_raw_fd(),
                    events.as_mut_ptr(),
                    N_EVENTS as libc::c_int,
                    millis,
                )
            };
            if let Ok(n) = usize::try_from(n) {
                break n;
            }
            let err = io::Error::last_os_error();
            if err.kind() != io::ErrorKind::Interrupted {
                return Err(err);
            }
        };
        let mut ready = Ready::default();
        for event in events.iter().take(n) {
            // The kernel's struct is packed: fields are copied, never borrowed.
            let (token, flags) = (event.u64, event.events);
            let bit = 1_u64.checked_shl(u32::try_from(token).unwrap_or(u32::MAX));
            let bit = bit.unwrap_or_default();
            let is_broken = flags & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
            if is_broken || flags & libc::EPOLLIN as u32 != 0 {
                ready.readable |= bit;
            }
            if is_broken || flags & libc::EPOLLOUT as u32 != 0 {
                ready.writable |= bit;
            }
        }
        Ok(ready)
    }
}

/// What a call that gives nothing but whether it failed has come to.
pub(crate) fn check(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(crate) fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the kernel just gave this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    const SOON: Option<Duration> = Some(Duration::from_millis(1));

    #[test]
    fn tells_descriptors_and_directions_apart() {
        let poller = Poller::new().unwrap();
        let waker = Waker::new().unwrap();
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        poller.add(waker.as_fd(), 0, Interest::Readable).unwrap();
        for (socket, token) in sockets.iter().zip(1..) {
            poller
                .add(socket.as_fd(), token, Interest::Readable)
                .unwrap();
        }
        assert_eq!(poller.wait(SOON).unwrap(), Ready::default());
        let to = sockets[1].local_addr().unwrap();
        sockets[0].send_to(b"x", to).unwrap();
        let second = Ready {
            readable: 1 << 2,
            writable: 0,
        };
        assert_eq!(poller.wait(None).unwrap(), second);
        assert_eq!(poller.wait(None).unwrap(), second, "until it is read empty");
        poller
            .modify(sockets[1].as_fd(), 2, Interest::Nothing)
            .unwrap();
        assert_eq!(poller.wait(SOON).unwrap(), Ready::default());
        poller
            .modify(sockets[0].as_fd(), 1, Interest::Both)
            .unwrap();
        let room = Ready {
            readable: 0,
            writable: 1 << 1,
        };
        assert_eq!(poller.wait(None).unwrap(), room);
        assert!(!waker.is_woken());
        waker.wake().unwrap();
        assert!(waker.is_woken());
        let ready = poller.wait(None).unwrap();
        assert_eq!(ready.readable & 1, 1);
    }

    #[test]
    fn wakes_a_thread_that_waits_without_end() {
        let waker = Waker::new().unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let poller = Poller::new().unwrap();
                poller.add(waker.as_fd(), 9, Interest::Readable).unwrap();
                poller.wait(None).unwrap()
            });
            waker.wake().unwrap();
            assert_eq!(thread.join().unwrap().readable, 1 << 9);
        });
    }

    #[test]
    fn a_bell_rings_until_it_is_answered() {
        let (poller, bell) = (Poller::new().unwrap(), Bell::new().unwrap());
        poller.add(bell.as_fd(), 0, Interest::Readable).unwrap();
        assert_eq!(poller.wait(SOON).unwrap(), Ready::default());
        for _ in 0..2 {
            bell.ring();
            bell.ring();
            assert_eq!(poller.wait(None).unwrap().readable, 1);
            bell.answer();
            assert_eq!(poller.wait(SOON).unwrap(), Ready::default());
        }
        bell.answer();
        assert_eq!(poller.wait(SOON).unwrap(), Ready::default());
    }

    #[test]
    fn a_token_above_63_is_refused() {
        let (poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
        let err = poller.add(waker.as_fd(), 64, Interest::Readable);
        assert_eq!(err.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
