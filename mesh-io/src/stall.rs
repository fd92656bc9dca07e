//! Notices that time passed without this process: the machine slept, or the process was stopped.
//!
//! A timer of the clock that goes on in sleep, `CLOCK_BOOTTIME`: when the machine wakes it has long been due and fires at
//! once, where one of the monotonic clock would wait for its rest.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::wait::{check, owned};

/// Fires once each period, and says how late that was.
#[derive(Debug)]
pub struct StallTimer {
    fd: OwnedFd,
    period: Duration,
    /// By the clock that goes on in sleep.
    due: Duration,
}

impl StallTimer {
    /// Starts one.
    ///
    /// # Errors
    /// When the process has no descriptor left, or the kernel no such clock.
    pub fn start(period: Duration) -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe {
            libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
        };
        let mut timer = Self {
            fd: owned(fd)?,
            period,
            due: Duration::ZERO,
        };
        timer.arm()?;
        Ok(timer)
    }

    /// Takes a firing, of which the descriptor's readiness tells, and starts the next period. Gives by how much it was late;
    /// `None` when it has not fired.
    ///
    /// # Errors
    /// When the kernel refuses, which it does not for a timer that is open.
    pub fn take(&mut self) -> io::Result<Option<Duration>> {
        let mut n_fired = [0; 8];
        // SAFETY: the pointer and the length are those of `n_fired`.
        let n = unsafe {
            libc::read(
                self.fd.as_raw_fd(),
                n_fired.as_mut_ptr().cast(),
                n_fired.len(),
            )
        };
        if n < 0 {
            let err = io::Error::last_os_error();
            return if matches!(
                err.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) {
                Ok(None)
            } else {
                Err(err)
            };
        }
        let late = boot_time()?.saturating_sub(self.due);
        self.arm()?;
        Ok(Some(late))
    }

    fn arm(&mut self) -> io::Result<()> {
        self.due = boot_time()? + self.period;
        let once = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: libc::time_t::try_from(self.due.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: self.due.subsec_nanos().into(),
            },
        };
        // SAFETY: `once` lives through the call, and no old value is asked for.
        let result = unsafe {
            libc::timerfd_settime(
                self.fd.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &raw const once,
                std::ptr::null_mut(),
            )
        };
        check(result)
    }
}

impl AsFd for StallTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for StallTimer {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// Time since the machine's start, its sleep included.
fn boot_time() -> io::Result<Duration> {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is that of `now`.
    check(unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) })?;
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Ok(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::wait::{Interest, Poller};

    const PERIOD: Duration = Duration::from_millis(30);

    #[test]
    fn it_fires_each_period_and_knows_how_late_it_is_read() {
        let start = Instant::now();
        let mut timer = StallTimer::start(PERIOD).unwrap();
        assert_eq!(timer.take().unwrap(), None, "not due");
        let poller = Poller::new().unwrap();
        poller.add(timer.as_fd(), 3, Interest::Readable).unwrap();
        for n in 1..=2 {
            let ready = poller.wait(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(ready.readable, 1 << 3);
            assert!(timer.take().unwrap().is_some());
            assert!(start.elapsed() >= PERIOD * n);
        }
        // Whatever kept this process from running: it is the same to the timer.
        let begun = Instant::now();
        std::thread::sleep(PERIOD * 4);
        let late = timer.take().unwrap().unwrap();
        assert!(late >= PERIOD * 2 && late <= begun.elapsed(), "{late:?}");
    }
}
