//! What the packages promise: exposure of the units, and maintainer scripts that a shell understands.

use std::path::{Path, PathBuf};
use std::process::Command;

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging")
}

#[test]
fn units_expose_little() {
    for (unit, limit) in [
        ("meshd.service", 2.0),
        ("meshd-names@.service", 2.4),
        ("coordinator.service", 1.4),
    ] {
        let analysed = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(packaging().join("systemd").join(unit))
            .output();
        let output = analysed.expect("systemd-analyze is missing: run `make tools` as root");
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text
            .lines()
            .find(|line| line.contains("Overall exposure level"))
            .unwrap();
        let score = line.split(": ").nth(1).unwrap().split(' ').next().unwrap();
        assert!(score.parse::<f64>().unwrap() <= limit, "{unit}: {score}");
    }
}

#[test]
fn scripts_are_shell_and_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut scripts: Vec<PathBuf> = ["assets.sh", "check.sh", "systemd-check.sh"]
        .map(|script| packaging().join(script))
        .to_vec();
    for package in ["proxima", "proxima-coordinator"] {
        for script in ["postinst", "prerm", "postrm"] {
            scripts.push(packaging().join("deb").join(package).join(script));
        }
    }
    for script in scripts {
        let status = Command::new("sh").arg("-n").arg(&script).status().unwrap();
        assert!(status.success(), "{}", script.display());
        let mode = std::fs::metadata(&script).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{}", script.display());
    }
}
