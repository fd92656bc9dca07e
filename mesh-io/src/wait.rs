//! How a packet thread sleeps: until its descriptor is ready, somebody wakes it, or time is up.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Wakes every thread that waits with it, from the first [`Waker::wake`] on and for good.
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
    #[cfg(target_os = "linux")]
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave this descriptor, nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            is_woken: AtomicBool::new(false),
        })
    }

    /// Wakes all, now and later.
    ///
    /// # Errors
    /// When the kernel refuses the write, which it does not for an event descriptor that was never read.
    #[cfg(target_os = "linux")]
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

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read.
    Readable,
    /// Room to write.
    Writable,
}

/// Why the waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The descriptor is ready, or broken: use it and see.
    Ready,
    /// The waker was used.
    Woken,
    /// Neither, for the whole time.
    TimedOut,
}

/// Sleeps until `fd` is ready or `waker` was used; without a timeout, for as long as it takes.
///
/// # Errors
/// Those of poll(2), except an interruption, which is waited out.
pub fn wait(
    fd: BorrowedFd<'_>,
    interest: Interest,
    waker: &Waker,
    timeout: Option<Duration>,
) -> io::Result<Waited> {
    let events = match interest {
        Interest::Readable => libc::POLLIN,
        Interest::Writable => libc::POLLOUT,
    };
    let millis = timeout.map_or(-1, |timeout| {
        i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
    });
    let pollfd = |fd: BorrowedFd<'_>, events| libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    let mut fds = [pollfd(fd, events), pollfd(waker.as_fd(), libc::POLLIN)];
    loop {
        // SAFETY: `fds` is an array of two that outlives the call.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), 2, millis) };
        if n >= 0 {
            break;
        }
        let err = io::Error::last_os_error();
        if err.kind() != io::ErrorKind::Interrupted {
            return Err(err);
        }
    }
    let [ready, woken] = fds.map(|fd| fd.revents != 0);
    Ok(match (ready, woken) {
        (_, true) => Waited::Woken,
        (true, false) => Waited::Ready,
        (false, false) => Waited::TimedOut,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn tells_ready_woken_and_timed_out_apart() {
        let waker = Waker::new().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let short = Some(Duration::from_millis(1));
        let look = |interest| wait(socket.as_fd(), interest, &waker, short).unwrap();
        assert_eq!(look(Interest::Readable), Waited::TimedOut);
        assert_eq!(look(Interest::Writable), Waited::Ready);
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert_eq!(look(Interest::Readable), Waited::Ready);
        assert!(!waker.is_woken());
        waker.wake().unwrap();
        assert!(waker.is_woken());
        assert_eq!(look(Interest::Readable), Waited::Woken);
        assert_eq!(look(Interest::Readable), Waited::Woken);
    }

    #[test]
    fn wakes_a_thread_that_waits_without_end() {
        let waker = Waker::new().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        std::thread::scope(|scope| {
            let thread =
                scope.spawn(|| wait(socket.as_fd(), Interest::Readable, &waker, None).unwrap());
            waker.wake().unwrap();
            assert_eq!(thread.join().unwrap(), Waited::Woken);
        });
    }
}
