//! Has the allocator give memory back that a burst took.
//!
//! The GNU C library keeps more, the longer the buffers that were freed: after the map of a thousand hosts was read it holds ten
//! megabytes for the next one. Other libraries are left as they are.

/// What is freed goes back to the kernel when so much lies together, in bytes; longer buffers are the kernel's at once.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 128 << 10;

/// Sets the allocator so, for the rest of the process. To be called once, at the start.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    for setting in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: it sets a number in the allocator under the allocator's own lock, and refuses one that makes no sense.
        unsafe { libc::mallopt(setting, KEPT) };
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_burst_leaves_nothing_behind() {
        let resident = || -> usize {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssAnon:"));
            let kib = line.unwrap().split_ascii_whitespace().nth(1).unwrap();
            kib.parse().unwrap()
        };
        give_back();
        // Freed, such a buffer would raise the threshold of an allocator that adapts to it.
        drop(vec![1_u8; 8 << 20]);
        let before = resident();
        let small: Vec<Vec<u8>> = (0..10_000).map(|_| vec![1; 600]).collect();
        assert!(resident() >= before + 5_000);
        drop(small);
        let after = resident();
        assert!(after <= before + 1_000, "{before} KiB, then {after}");
    }
}
