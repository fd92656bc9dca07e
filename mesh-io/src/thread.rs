//! How a thread has its part of a core that it shares.

use std::io;

use crate::wait::check;

/// Makes the calling thread one that stands between other programs and serves them in turn, for good.
///
/// It lets whom it is woken by go on first (`SCHED_BATCH`), so that what comes together is worked in one go; and it is as nice to
/// the others as is told, from -20 to 19: one level less is a quarter more of a core that is wanted by many.
///
/// # Errors
/// When the system does not let it. A negative niceness takes `RLIMIT_NICE` or `CAP_SYS_NICE`; the first part holds without.
pub fn serve_in_turn(niceness: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is valid for the call; 0 is the calling thread.
    let batch = check(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const param) });
    // SAFETY: it takes numbers alone. On Linux, 0 is the calling thread here too.
    let nice = check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) });
    batch.and(nice)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    #[test]
    fn it_is_the_calling_thread_alone() {
        // Niceness and policy, the 19th and the 41st field; the name has no space.
        let of = |path: &str| {
            let text = fs::read_to_string(path).unwrap();
            let fields: Vec<_> = text.split(' ').collect();
            (
                fields[18].parse::<i32>().unwrap(),
                fields[40].parse::<i32>().unwrap(),
            )
        };
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let before = of("/proc/self/stat");
        let told = named("serves").spawn(move || {
            serve_in_turn(7).unwrap();
            of("/proc/thread-self/stat")
        });
        assert_eq!(told.unwrap().join().unwrap(), (7, libc::SCHED_BATCH));
        assert_eq!(of("/proc/self/stat"), before);
        let other = named("other").spawn(move || of("/proc/thread-self/stat"));
        assert_eq!(other.unwrap().join().unwrap(), before);
    }
}
