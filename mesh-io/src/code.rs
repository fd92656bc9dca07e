//! Gives back the pages of program code that the start of a process left in its memory.
//!
//! The kernel maps code by the neighbourhood: whatever ran once, and all around it, counts as this process's memory until the
//! machine runs short. Of a daemon that is up, most of that never runs again.

use std::fs;
use std::io;

/// Forgets all pages of code. What runs again is found in the page cache, some microseconds each time.
///
/// # Errors
/// Without `/proc`.
pub fn forget() -> io::Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    for (start, len) in maps.lines().filter_map(code) {
        // SAFETY: the range is one whole mapping of a file, private, executable and not writable. Its pages are those of the file
        // and are read from there again; relocations are written elsewhere.
        let _ = unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(start),
                len,
                libc::MADV_DONTNEED,
            )
        };
    }
    Ok(())
}

/// The start and the length of a mapping of code from a file.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp";
    // Offset, device and inode; then the path, which begins with a slash only for a file.
    let is_file = fields.nth(3)?.starts_with('/');
    let number = |digits| usize::from_str_radix(digits, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    (is_code && is_file).then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_taken() {
        let line = |kind: &str, path: &str| {
            format!("7f0000001000-7f0000003000 {kind} 00001000 fe:00 1234    {path}")
        };
        assert_eq!(
            code(&line("r-xp", "/usr/bin/meshd")),
            Some((0x7f00_0000_1000, 0x2000))
        );
        for (kind, path) in [
            ("rwxp", "/usr/bin/meshd"),
            ("r--p", "/usr/bin/meshd"),
            ("rw-p", "/usr/bin/meshd"),
            ("r-xs", "/dev/shm/x"),
            ("r-xp", "[vdso]"),
            ("r-xp", ""),
        ] {
            assert_eq!(code(&line(kind, path)), None, "{kind} {path}");
        }
        assert_eq!(code(""), None);
    }

    #[test]
    fn the_process_goes_on_with_less() {
        let resident = || -> usize {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssFile:"));
            let kib = line.unwrap().split_ascii_whitespace().nth(1).unwrap();
            kib.parse().unwrap()
        };
        let before = resident();
        forget().unwrap();
        let after = resident();
        assert!(after < before, "{before} KiB, then {after}");
    }
}
