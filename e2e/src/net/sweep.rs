//! Taking a lab down, whoever made it and however that ended.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, Once};

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::disk;

/// Where `ip netns exec` looks for a namespace's own files of `/etc`.
pub(crate) const ETC_NETNS: &str = "/etc/netns";
const RUN_NETNS: &str = "/run/netns";
const N_KILL_ROUNDS_MAX: u32 = 50;

static PREFIXES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static WATCH: Once = Once::new();

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// Ends every process in the namespaces with a prefix and removes these, their files and folders.
pub fn sweep(prefix: &str) {
    // Nothing here can be mended by the caller, and the next lab tries again: results are dropped.
    for name in names(Path::new(RUN_NETNS)) {
        if !name.starts_with(prefix) {
            continue;
        }
        kill_all_in(&name);
        drop(Command::new("ip").args(["netns", "del", &name]).output());
    }
    for name in names(Path::new(ETC_NETNS)) {
        if name.starts_with(prefix) {
            drop(fs::remove_dir_all(Path::new(ETC_NETNS).join(name)));
        }
    }
    // Removed only when it is empty.
    drop(fs::remove_dir(ETC_NETNS));
    for name in names(&std::env::temp_dir()) {
        if name.starts_with(prefix) {
            let folder = std::env::temp_dir().join(name);
            for mount in disk::mounts_below(&folder) {
                disk::unmount(&mount);
            }
            drop(fs::remove_dir_all(folder));
        }
    }
    if let Ok(mut prefixes) = PREFIXES.lock() {
        prefixes.retain(|other| other != prefix);
    }
}

/// Looks until nobody is left: a program that is just being killed may have started another one.
fn kill_all_in(namespace: &str) {
    for _ in 0..N_KILL_ROUNDS_MAX {
        let listed = Command::new("ip")
            .args(["netns", "pids", namespace])
            .output();
        let Ok(output) = listed else { return };
        let pids = String::from_utf8_lossy(&output.stdout).into_owned();
        if pids.trim().is_empty() {
            return;
        }
        let pids = pids.split_whitespace();
        drop(Command::new("kill").arg("-9").args(pids).output());
    }
}

/// Sweeps what processes left that live no more.
pub(crate) fn sweep_dead() {
    let mut all = names(Path::new(RUN_NETNS));
    all.extend(names(Path::new(ETC_NETNS)));
    all.extend(names(&std::env::temp_dir()));
    for name in all {
        if let Some(pid) = owner(&name)
            && !Path::new("/proc").join(pid).exists()
        {
            sweep(&format!("px{pid}-"));
        }
    }
}

/// The process id in a name such as `px1234-0-router`.
fn owner(name: &str) -> Option<&str> {
    let (pid, _) = name.strip_prefix("px")?.split_once('-')?;
    (!pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit())).then_some(pid)
}

/// Sweeps a prefix when the process is asked to end.
pub(crate) fn on_signal(prefix: &str) -> Result<()> {
    if let Ok(mut prefixes) = PREFIXES.lock() {
        prefixes.push(prefix.to_owned());
    }
    let mut started = Ok(());
    WATCH.call_once(|| {
        started = watch();
    });
    started
}

fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    // Lives as long as the process: it is how the process ends.
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        let prefixes = PREFIXES.lock().map(|all| all.clone()).unwrap_or_default();
        for prefix in prefixes {
            // Twice: the program's other threads may have made something while the first round went on.
            sweep(&prefix);
            sweep(&prefix);
        }
        std::process::exit(130);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn only_our_own_names_are_swept() {
        assert_eq!(owner("px12-0-router"), Some("12"));
        for other in ["px-0-router", "pxabc-0", "px12", "vb12A", "proxy12-1"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
