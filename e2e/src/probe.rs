//! Questions as a host's users ask them: `dig`, `curl`, `ping`.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::net::Host;
use crate::process::{ensure_success, stderr, stdout};
use crate::tool;

/// An HTTP request, sent by `curl`.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method, on the wire as it is here.
    pub method: String,
    /// The URL; its path goes out as it is here.
    pub url: String,
    /// The body, if any.
    pub body: Option<Vec<u8>>,
    /// More headers, `name: value`.
    pub headers: Vec<String>,
    /// How long the whole may take.
    pub limit: Duration,
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its header lines.
    pub headers: Vec<String>,
    /// Its body.
    pub body: String,
}

impl Request {
    /// A `GET`.
    #[must_use]
    pub fn get(url: &str) -> Self {
        Self {
            method: "GET".to_owned(),
            url: url.to_owned(),
            body: None,
            headers: Vec::new(),
            limit: Duration::from_secs(30),
        }
    }

    /// A `POST` of JSON.
    #[must_use]
    pub fn post(url: &str, body: &str) -> Self {
        Self {
            method: "POST".to_owned(),
            body: Some(body.as_bytes().to_vec()),
            ..Self::get(url)
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, header: &str) -> Self {
        self.headers.push(header.to_owned());
        self
    }

    /// Changes the limit of time.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The `curl` that sends it, printing the body as it comes.
    #[must_use]
    pub fn command(&self, host: &Host) -> Command {
        let mut curl = host.command("curl");
        curl.args(["-sS", "-N", "--path-as-is", "--noproxy", "*"]);
        curl.args(["--max-time", &self.limit.as_secs_f64().to_string()]);
        if self.method == "HEAD" {
            curl.arg("--head");
        } else {
            curl.args(["-X", &self.method]);
        }
        for header in &self.headers {
            curl.args(["-H", header]);
        }
        curl.arg(&self.url);
        curl
    }

    /// Sends it from a host and reads the whole answer.
    ///
    /// # Errors
    /// When no answer came, with curl's words.
    pub fn send(&self, host: &Host) -> Result<Answer> {
        let scratch = tempfile::tempdir_in(host.dir())?;
        let mut curl = self.command(host);
        let (head, content) = (scratch.path().join("head"), scratch.path().join("content"));
        curl.arg("-D").arg(&head);
        if let Some(body) = &self.body {
            std::fs::write(&content, body)?;
            let is_typed = self
                .headers
                .iter()
                .any(|header| header.to_ascii_lowercase().starts_with("content-type:"));
            if !is_typed {
                curl.args(["-H", "Content-Type: application/json"]);
            }
            curl.arg("--data-binary")
                .arg(format!("@{}", content.display()));
        }
        let output = curl.output().context("curl")?;
        let head = std::fs::read_to_string(&head).unwrap_or_default();
        // After a `100 Continue` comes a second head.
        let head = head
            .trim_end()
            .rsplit("\r\n\r\n")
            .next()
            .unwrap_or_default();
        let mut lines = head.lines().map(|line| line.trim_end().to_owned());
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let Some(status) = status else {
            bail!("{} {}: {}", self.method, self.url, stderr(&output).trim());
        };
        Ok(Answer {
            status,
            headers: lines.collect(),
            body: stdout(&output),
        })
    }
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {self:?}"))
    }

    /// The body as lines of JSON.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn json_lines(&self) -> Result<Vec<Value>> {
        let lines = self.body.lines().filter(|line| !line.is_empty());
        let lines = lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
        lines.collect()
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// What `dig` got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsAnswer {
    /// Such as `NOERROR`.
    pub status: String,
    /// The data of the answer records.
    pub data: Vec<String>,
}

/// Asks for a name. Without a server, the one of the host's `/etc/resolv.conf` is asked.
///
/// # Errors
/// When no answer came.
pub fn dig(
    host: &Host,
    server: Option<IpAddr>,
    name: &str,
    kind: &str,
    is_tcp: bool,
) -> Result<DnsAnswer> {
    let server = server.map(|server| format!("@{server}"));
    let mut args: Vec<&str> = server.as_deref().into_iter().collect();
    args.extend([name, kind, "+time=2", "+tries=1", "+nocookie"]);
    args.push(if is_tcp { "+tcp" } else { "+notcp" });
    let output = host.run("dig", &args)?;
    let text = stdout(&output);
    let status = text
        .split("status: ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    let Some(status) = status else {
        bail!("dig {}: {}", args.join(" "), text.trim());
    };
    let answers = text
        .split(";; ANSWER SECTION:\n")
        .nth(1)
        .unwrap_or_default();
    let answers = answers.lines().take_while(|line| !line.is_empty());
    let data = answers.filter_map(|line| {
        let mut fields = line.split_whitespace();
        let kind_found = fields.nth(3)?;
        (kind_found == kind).then(|| fields.collect::<Vec<_>>().join(" "))
    });
    Ok(DnsAnswer {
        status: status.to_owned(),
        data: data.collect(),
    })
}

/// The IPv4 addresses of a name, by the host's own resolver.
///
/// # Errors
/// When no answer came.
pub fn resolve(host: &Host, name: &str) -> Result<Vec<Ipv4Addr>> {
    let answer = dig(host, None, name, "A", false)?;
    answer
        .data
        .iter()
        .map(|text| text.parse().with_context(|| text.clone()))
        .collect()
}

/// Sends one echo request, which must be answered within a second.
///
/// # Errors
/// When it is not.
pub fn ping(host: &Host, target: impl Into<IpAddr>) -> Result<()> {
    let target = target.into().to_string();
    let output = host.run("ping", &["-n", "-c", "1", "-W", "1", &target])?;
    ensure_success(&format!("ping {target} from {}", host.name()), &output)
}

/// Probes each 20 ms until the first answer, and says when that was.
///
/// # Errors
/// When none comes in time.
pub fn first_answer(host: &Host, target: impl Into<IpAddr>, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    let target = target.into().to_string();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        let seconds = left.as_secs().max(1).to_string();
        let args = ["-n", "-q", "-i", "0.02", "-c", "1", "-w", &seconds, &target];
        let output = host.run("ping", &args)?;
        let asked = ensure_success(&format!("{}: ping {target}", host.name()), &output);
        if asked.is_ok() {
            return Ok(start.elapsed());
        }
        // It ends early where this machine itself says that there is no way, as before meshd has made one.
        if start.elapsed() >= limit {
            asked?;
        }
    }
}

/// Whether a TCP connection comes about within a second.
///
/// # Errors
/// When the question cannot be asked.
pub fn can_connect(host: &Host, target: IpAddr, port: u16) -> Result<bool> {
    let script = "import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()
    print('open')
except OSError as err:
    print(err)";
    let (target, port) = (target.to_string(), port.to_string());
    let output = host.run(tool::python()?, &["-c", script, &target, &port])?;
    ensure_success("connect", &output)?;
    Ok(stdout(&output).trim() == "open")
}

/// The words of a counting model's reply, each checked to follow the one before.
///
/// # Errors
/// At the first word that is lost, doubled or of another model.
pub fn counted(text: &str, letter: char) -> Result<usize> {
    let mut n_words = 0;
    for word in text.split_whitespace() {
        n_words += 1;
        ensure!(
            word == format!("{letter}{n_words}"),
            "word {n_words} is {word:?} in {text:?}"
        );
    }
    Ok(n_words)
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn a_count_notices_what_is_lost_doubled_or_from_elsewhere() {
        assert_eq!(counted(" t1 t2 t3", 't').unwrap(), 3);
        for wrong in [" t1 t3", " t1 t1", " t2", " o1", " t1 t2t3"] {
            assert!(counted(wrong, 't').is_err(), "{wrong}");
        }
    }
}
