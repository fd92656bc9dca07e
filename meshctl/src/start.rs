//! Which `meshd` is talked to, and how it is started when it is not running: by its systemd unit where there is one, else as
//! a process of its own, an ordinary user's in that user's directories.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

const UNIT: &str = "meshd.service";
const UNIT_DIRS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
const STATE_DIR: &str = "/var/lib/proxima";
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);
const LOG_TAIL_LINES: usize = 5;

/// The command that starts the daemon behind a socket.
pub(crate) fn start_command(socket: &Path) -> &'static str {
    if is_own(socket) {
        "meshctl up --userspace"
    } else if has_unit() {
        "sudo systemctl start meshd"
    } else {
        "sudo meshctl up"
    }
}

/// The socket of the machine's daemon; for an ordinary user on a machine that has none, that of the user's own.
pub(crate) fn default_socket() -> PathBuf {
    let machine = PathBuf::from(mesh_proto::local::SOCKET_PATH);
    if is_root() || has_unit() {
        return machine;
    }
    // What may not be seen is there.
    match std::os::unix::net::UnixStream::connect(&machine) {
        Ok(_) => machine,
        Err(err) if err.kind() == std::io::ErrorKind::PermissionDenied => machine,
        Err(_) => own_socket().unwrap_or(machine),
    }
}

/// Where the daemon of this user is reached, by the XDG base directories.
fn own_socket() -> Option<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let dir = match runtime.filter(|dir| dir.is_dir()) {
        Some(runtime) => runtime.join("proxima"),
        None => own_state_dir()?,
    };
    Some(dir.join("meshd.sock"))
}

/// Whether a socket is that of an ordinary user's own daemon.
fn is_own(socket: &Path) -> bool {
    !is_root() && own_socket().as_deref() == Some(socket)
}

fn own_state_dir() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let dir = std::env::var_os(name).map(PathBuf::from);
        dir.filter(|dir| dir.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME");
    let state = state.or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("proxima"))
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").map_or(0, |found| found.uid()) == 0
}

/// Starts the daemon when nothing answers on the socket, says so, and waits until something does.
pub(crate) async fn ensure_running(client: &Client, output: &Output) -> Result<(), Failure> {
    if client.is_up().await {
        return Ok(());
    }
    // Without the right to see the socket a second daemon would be started beside the first.
    if matches!(tokio::net::UnixStream::connect(client.socket()).await, Err(err) if err.kind() == std::io::ErrorKind::PermissionDenied)
    {
        return Ok(());
    }
    let mut started = if has_unit() && is_default_socket(client.socket()) {
        output.note("meshd is not running: starting its systemd unit");
        start_unit().await?;
        None
    } else {
        let started = spawn_daemon(client.socket())?;
        output.note(&format!(
            "meshd is not running: started {} in the background (log: {})",
            started.program.display(),
            started.log.display()
        ));
        Some(started)
    };
    output
        .during("waiting for meshd", await_socket(client, started.as_mut()))
        .await
}

fn is_default_socket(socket: &Path) -> bool {
    socket == Path::new(mesh_proto::local::SOCKET_PATH)
}

fn has_unit() -> bool {
    Path::new("/run/systemd/system").is_dir()
        && UNIT_DIRS
            .iter()
            .any(|dir| Path::new(dir).join(UNIT).exists())
}

async fn start_unit() -> Result<(), Failure> {
    let run = tokio::task::spawn_blocking(|| {
        Command::new("systemctl")
            .args(["start", UNIT])
            .stdin(Stdio::inherit())
            .status()
    });
    match run.await {
        Ok(Ok(status)) if status.success() => Ok(()),
        _ => Err(Failure::new(
            Exit::NotRunning,
            "not_running",
            "systemd did not start meshd",
        )
        .with_fix("sudo systemctl start meshd")
        .with_fix_note("journalctl -u meshd -n 50", "why it did not start")),
    }
}

struct Started {
    child: Child,
    program: PathBuf,
    log: PathBuf,
}

fn spawn_daemon(socket: &Path) -> Result<Started, Failure> {
    let not_running = |message: String| Failure::new(Exit::NotRunning, "not_running", message);
    let program = find_daemon().ok_or_else(|| {
        not_running("the daemon meshd is not running, and no program of that name lies beside meshctl or in PATH".to_owned())
            .with_fix_note("sudo apt install proxima", "or put meshd beside meshctl")
    })?;
    if !is_root() && is_default_socket(socket) {
        return Err(not_running(
            "the daemon meshd is not running, and only root may start it".to_owned(),
        )
        .with_fix("sudo meshctl up"));
    }
    let named_dir = std::env::var_os("MESHD_STATE_DIR").map(PathBuf::from);
    let own_dir = named_dir.or_else(|| own_state_dir().filter(|_| is_own(socket)));
    let dir = own_dir.clone().unwrap_or_else(|| PathBuf::from(STATE_DIR));
    let log = dir.join("meshd.log");
    let cannot = |err: std::io::Error| {
        not_running(format!("cannot start meshd: {}: {err}", log.display()))
            .with_fix("sudo meshctl up")
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(cannot)?;
    let file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log)
        .map_err(cannot)?;
    let errors = file.try_clone().map_err(cannot)?;

    // A session of its own, so that closing the terminal does not end it.
    let setsid = find_in_path("setsid");
    let mut command = Command::new(setsid.as_deref().unwrap_or(&program));
    if setsid.is_some() {
        command.arg(&program);
    } else {
        command.process_group(0);
    }
    if !is_default_socket(socket) {
        command.arg("--socket").arg(socket);
    }
    if let Some(dir) = own_dir {
        command.arg("--state-dir").arg(dir);
    }
    let child = command
        .current_dir("/")
        .env_remove("PROXIMA_AUTH_KEY")
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(|err| not_running(format!("cannot start {}: {err}", program.display())))?;
    Ok(Started {
        child,
        program,
        log,
    })
}

fn find_daemon() -> Option<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|me| Some(me.parent()?.join("meshd")));
    beside
        .filter(|path| path.is_file())
        .or_else(|| find_in_path("meshd"))
}

fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

async fn await_socket(client: &Client, mut started: Option<&mut Started>) -> Result<(), Failure> {
    let deadline = Instant::now() + SOCKET_TIMEOUT;
    let mut pause = RETRY_FIRST;
    loop {
        if client.is_up().await {
            return Ok(());
        }
        if let Some(started) = started.as_deref_mut()
            && let Ok(Some(status)) = started.child.try_wait()
        {
            let mut message = format!("meshd ended at once ({status})");
            for line in log_tail(&started.log) {
                message.push_str("\n    ");
                message.push_str(&line);
            }
            return Err(Failure::new(Exit::NotRunning, "not_running", message)
                .with_fix(format!("less {}", started.log.display())));
        }
        if Instant::now() >= deadline {
            let look = started.map_or_else(
                || "journalctl -u meshd -n 50".to_owned(),
                |started| format!("less {}", started.log.display()),
            );
            return Err(Failure::new(
                Exit::NotRunning,
                "not_running",
                format!(
                    "meshd was started but did not open {} within {} s",
                    client.socket().display(),
                    SOCKET_TIMEOUT.as_secs()
                ),
            )
            .with_fix(look));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

fn log_tail(log: &Path) -> Vec<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}
