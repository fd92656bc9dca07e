//! Thousands of streams through a guest's gateway and the doors of four hosts, whose machines and model servers die at random:
//! each stream is whole, or says that it is not.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::task::JoinSet;

use super::*;

/// The words of one answer; a model server of these tests counts to it.
const N_WORDS: usize = 24;
const N_CLIENTS: usize = 24;
/// After so many streams the next host dies, and the one that died before is back.
const N_BETWEEN_DEATHS: usize = 50;

/// Numbers that look like chance and are the same in each run.
fn chance(n: u64) -> u64 {
    crate::choice::mix(n)
}

/// A model server that counts, and now and then dies: before its answer, at its head, or in the middle.
pub(super) async fn counting_server() -> (Backend, AbortOnDropHandle<()>) {
    let Backend { listener, addr } = Backend::start().await;
    let task = tokio::spawn(async move {
        static N_ASKED: AtomicU64 = AtomicU64::new(0);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.unwrap();
                    connections.spawn(async move {
                        let mut stream = stream;
                        let mut seen = Vec::new();
                        while let Some(path) = next_request(&mut stream, &mut seen).await {
                            let fate = chance(N_ASKED.fetch_add(1, Ordering::Relaxed)) % 100;
                            if count(&mut stream, &path, fate).await.is_none() {
                                return;
                            }
                        }
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
    });
    let kept = Backend {
        listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
        addr,
    };
    (kept, AbortOnDropHandle::new(task))
}

/// Reads one request; its path.
pub(super) async fn next_request(stream: &mut TcpStream, seen: &mut Vec<u8>) -> Option<String> {
    loop {
        let text = String::from_utf8_lossy(seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let told = head.to_ascii_lowercase();
            let told = told
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let n_body: usize = told.unwrap_or(0);
            if body.len() >= n_body {
                seen.drain(..head.len() + 4 + n_body);
                return head.split(' ').nth(1).map(str::to_owned);
            }
        }
        if stream.read_buf(seen).await.ok()? == 0 {
            return None;
        }
    }
}

/// Answers one request as fate wants it; `None` when the server died of it.
async fn count(stream: &mut TcpStream, path: &str, fate: u64) -> Option<()> {
    let error = |status: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{{\"error\":\"sick\"}}"
        )
    };
    match fate {
        0..2 => return None,
        2..4 => return stream.write_all(error("500 Oops").as_bytes()).await.ok(),
        4..6 => return stream.write_all(error("503 Busy").as_bytes()).await.ok(),
        _ => {}
    }
    let is_openai = path.starts_with("/v1/");
    let kind = if is_openai {
        "text/event-stream"
    } else {
        "application/x-ndjson"
    };
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    // Dies at its head, or after so many words.
    let n_lived = match fate {
        6 => 0,
        7..10 => 1 + usize::try_from(chance(fate) % 20).unwrap(),
        _ => N_WORDS,
    };
    for n in 1..=n_lived {
        let text = if is_openai {
            format!(
                "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" t{n}\"}}}}]}}\n\n"
            )
        } else {
            format!(
                "{{\"model\":\"tiny\",\"message\":{{\"role\":\"assistant\",\"content\":\" t{n}\"}},\"done\":false}}\n"
            )
        };
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        stream.write_all(chunk.as_bytes()).await.ok()?;
    }
    if n_lived < N_WORDS {
        return None;
    }
    let last = if is_openai {
        "data: [DONE]\n\n".to_owned()
    } else {
        format!(
            "{{\"model\":\"tiny\",\"message\":{{\"role\":\"assistant\",\"content\":\"\"}},\"done\":true,\"eval_count\":{N_WORDS}}}\n"
        )
    };
    let last = format!("{:x}\r\n{last}\r\n0\r\n\r\n", last.len());
    stream.write_all(last.as_bytes()).await.ok()
}

/// The way to a host's door, which can be cut: a machine that dies takes its connections with it.
pub(super) struct Wire {
    at: SocketAddr,
    door: SocketAddr,
    task: Option<AbortOnDropHandle<()>>,
}

impl Wire {
    pub(super) fn new(n: u8, port: u16, door: u16) -> Self {
        let mut wire = Self {
            at: SocketAddr::new(Ipv4Addr::new(127, 0, 0, n).into(), port),
            door: SocketAddr::new(OWN.into(), door),
            task: None,
        };
        wire.mend();
        wire
    }

    pub(super) async fn cut(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // Its listener is closed when it is over.
            let _ = task.await;
        }
    }

    pub(super) fn mend(&mut self) {
        if self.task.is_some() {
            return;
        }
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.at).unwrap();
        let listener = socket.listen(256).unwrap();
        let door = self.door;
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((mut near, _)) = accepted else { continue };
                        connections.spawn(async move {
                            let Ok(mut far) = TcpStream::connect(door).await else { return };
                            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        })));
    }
}

/// How a stream went.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Whole {
        n_attempts: usize,
    },
    /// It broke off and said so.
    Told,
    /// It never began, and an error says why.
    Refused,
}

fn judge(reply: &Reply, is_openai: bool) -> Result<Outcome, String> {
    if reply.status != 200 {
        let says = serde_json::from_str::<Value>(&reply.body)
            .is_ok_and(|body| body["error"] != Value::Null);
        return if says && reply.is_whole {
            Ok(Outcome::Refused)
        } else {
            Err(format!("status {} without a word", reply.status))
        };
    }
    let (mut n, mut is_done, mut is_told) = (0, false, false);
    for line in reply.body.lines().filter(|line| !line.is_empty()) {
        let text = if is_openai {
            line.strip_prefix("data: ").ok_or("no event")?
        } else {
            line
        };
        if is_done || is_told {
            return Err(format!("more after the end: {line}"));
        }
        if text == "[DONE]" {
            is_done = true;
            continue;
        }
        let value: Value = serde_json::from_str(text).map_err(|_| format!("cut: {line}"))?;
        if value.get("error").is_some() {
            is_told = true;
            continue;
        }
        let said = if is_openai {
            &value["choices"][0]["delta"]["content"]
        } else {
            is_done = value["done"] == true;
            &value["message"]["content"]
        };
        if !is_done {
            n += 1;
            if *said != format!(" t{n}") {
                return Err(format!("{said} where t{n} was due"));
            }
        }
    }
    let n_attempts = reply
        .head
        .lines()
        .find_map(|line| line.strip_prefix("x-proxima-attempts: ")?.parse().ok())
        .ok_or("no count of attempts")?;
    match (is_done, is_told, reply.is_whole) {
        (true, false, true) if n == N_WORDS => Ok(Outcome::Whole { n_attempts }),
        (false, true, false) => Ok(Outcome::Told),
        _ => Err(format!(
            "{n} words, done {is_done}, told {is_told}, whole {}",
            reply.is_whole
        )),
    }
}

/// Four hosts with one model, each with a model server that counts, and a guest that knows them all.
async fn stage() -> (Node, Vec<Node>, Vec<Wire>, Vec<AbortOnDropHandle<()>>) {
    let (listeners, port) = guest::hosts(&[4, 5, 6, 7]).await;
    drop(listeners);
    let (mut doors, mut wires, mut servers, mut peers) = (vec![], vec![], vec![], vec![]);
    for n in 4..=7 {
        let (backend, server) = counting_server().await;
        let config = ShareConfig {
            n_slots: 16,
            ..on()
        };
        let door = Node::start(Vec::new(), config, vec![(ollama("tiny"), &backend)], None);
        wires.push(Wire::new(n, port, door.gateway.door_ports().model));
        doors.push(door);
        servers.push(server);
        peers.push(peer(n, vec![ollama("tiny")]));
    }
    let guest = Node::start(peers, ShareConfig::default(), Vec::new(), Some(port));
    (guest, doors, wires, servers)
}

/// `PROXIMA_STREAMS` asks for another number of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn no_stream_is_lost_doubled_or_cut_in_silence_while_hosts_die() {
    let n_streams: usize = std::env::var("PROXIMA_STREAMS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(10_000);
    let (guest, _doors, mut wires, _servers) = stage().await;
    let port = guest.gateway.guest_ports().unwrap().model;
    let next = Arc::new(AtomicUsize::new(0));
    let (over_tx, mut over) = mpsc::channel(64);
    let mut clients = JoinSet::new();
    for _ in 0..N_CLIENTS {
        let (next, over) = (Arc::clone(&next), over_tx.clone());
        clients.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= n_streams {
                    return;
                }
                let is_openai = n % 3 == 0;
                let path = if is_openai {
                    "/v1/chat/completions"
                } else {
                    "/api/chat"
                };
                let ask = format!("{{\"model\":\"tiny\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"{n}\"}}]}}");
                let client = Client::send(1, port, &post(path, &ask)).await;
                let outcome = judge(&client.reply().await, is_openai);
                over.send(outcome.map_err(|why| format!("stream {n}: {why}")))
                    .await
                    .unwrap();
            }
        });
    }
    drop(over_tx);
    let (mut n_whole, mut n_retried, mut n_told, mut n_refused) = (0, 0, 0, 0);
    let mut n_over = 0;
    while let Some(outcome) = over.recv().await {
        match outcome.unwrap() {
            Outcome::Whole { n_attempts } => {
                n_whole += 1;
                n_retried += usize::from(n_attempts > 1);
            }
            Outcome::Told => n_told += 1,
            Outcome::Refused => n_refused += 1,
        }
        n_over += 1;
        if n_over % N_BETWEEN_DEATHS == 0 {
            let dying = usize::try_from(chance(n_over as u64) % 4).unwrap();
            for (at, wire) in wires.iter_mut().enumerate() {
                if at == dying {
                    wire.cut().await;
                } else {
                    wire.mend();
                }
            }
        }
    }
    println!(
        "{n_over} streams: {n_whole} whole, {n_retried} of them at another host, {n_told} told broken, {n_refused} refused"
    );
    assert_eq!(n_over, n_streams);
    assert!(n_retried > 0 && n_told > 0, "nothing died");
    assert!(n_whole * 10 > n_streams * 8, "most should be whole");
}
