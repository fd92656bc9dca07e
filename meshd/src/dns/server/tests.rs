//! The resolver over loopback sockets: both transports, changes, foreign names, loops.

use std::net::Ipv4Addr;
use std::str::FromStr;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::dns::fixture::{offers, peer, view, view_of};

struct Fixture {
    port: u16,
    view: watch::Sender<Option<Arc<View>>>,
    hosts: Arc<Hosts>,
    upstreams: Arc<Upstreams>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

async fn start(view: Option<View>) -> Fixture {
    let (sender, receiver) = watch::channel(view.map(Arc::new));
    let (hosts, upstreams, cancel) = (
        Arc::default(),
        Arc::<Upstreams>::default(),
        CancellationToken::new(),
    );
    let addrs = [Ipv4Addr::LOCALHOST.into()];
    let server = DnsServer::bind(&addrs, receiver, Arc::clone(&hosts), Arc::clone(&upstreams))
        .await
        .unwrap();
    let port = server.port();
    let task = tokio::spawn(server.run(cancel.clone()));
    Fixture {
        port,
        view: sender,
        hosts,
        upstreams,
        cancel,
        task,
    }
}

fn query(name: &str) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), RecordType::A));
    message
}

async fn ask_udp(port: u16, message: &Message) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket
        .send_to(&message.to_vec().unwrap(), (Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let mut buffer = [0; 4096];
    let n = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    Message::from_vec(&buffer[..n]).unwrap()
}

async fn ask_tcp(stream: &mut TcpStream, message: &Message) -> Message {
    let bytes = message.to_vec().unwrap();
    let len = u16::try_from(bytes.len()).unwrap();
    stream
        .write_all(&[&len.to_be_bytes(), bytes.as_slice()].concat())
        .await
        .unwrap();
    Message::from_vec(&read_frame(stream).await.unwrap()).unwrap()
}

fn ips(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

impl Fixture {
    async fn ask(&self, name: &str) -> Message {
        ask_udp(self.port, &query(name)).await
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

/// An upstream that gives every name these addresses; it counts nothing and ends with the test.
async fn upstream(addrs: &'static [[u8; 4]]) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 3), 0))
        .await
        .unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
            let mut message = Message::from_vec(&buffer[..n]).unwrap();
            message.metadata.message_type = MessageType::Response;
            let name = message.queries[0].name().clone();
            for ip in addrs {
                message.add_answer(Record::from_rdata(
                    name.clone(),
                    60,
                    RData::A(A((*ip).into())),
                ));
            }
            let mut forged = message.clone();
            forged.metadata.id = message.metadata.id.wrapping_add(1);
            socket
                .send_to(&forged.to_vec().unwrap(), from)
                .await
                .unwrap();
            socket
                .send_to(&message.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
    addr
}

#[tokio::test]
async fn answers_by_udp_and_many_times_by_one_tcp_connection() {
    let fixture = start(Some(view())).await;
    assert_eq!(ips(&fixture.ask("llama3.proxima.").await), ["10.77.1.1"]);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, fixture.port))
        .await
        .unwrap();
    for name in ["llama3.proxima.", "ollama.proxima.", "llama3.proxima."] {
        assert_eq!(ask_tcp(&mut stream, &query(name)).await.answers.len(), 1);
    }
    drop(stream);
    fixture.stop().await;
}

#[tokio::test]
async fn names_follow_the_view_and_hosts_that_fail() {
    let fixture = start(Some(view())).await;
    assert_eq!(
        ips(&fixture.ask("nomic-embed-text.proxima.").await),
        ["10.77.1.2"]
    );
    let (gpu7, entry) = peer(7, "gpu7", offers(&[("fresh", 1)]));
    fixture
        .view
        .send_replace(Some(Arc::new(view_of(offers(&[]), vec![(gpu7, entry)]))));
    let until = |name: &'static str, n: usize| {
        let port = fixture.port;
        async move {
            let work = async { while ask_udp(port, &query(name)).await.answers.len() != n {} };
            tokio::time::timeout(Duration::from_secs(10), work)
                .await
                .unwrap();
        }
    };
    until("fresh.proxima.", 1).await;
    until("nomic-embed-text.proxima.", 0).await;
    fixture.hosts.mark_down(gpu7, Instant::now());
    until("fresh.proxima.", 0).await;
    fixture.hosts.mark_up(&gpu7);
    until("fresh.proxima.", 1).await;
    fixture.stop().await;
}

#[tokio::test]
async fn mesh_names_are_never_forwarded() {
    let fixture = start(None).await;
    fixture
        .upstreams
        .set(vec![upstream(&[[192, 0, 2, 1]]).await]);
    let code = |message: Message| message.metadata.response_code;
    assert_eq!(
        code(fixture.ask("llama3.proxima.").await),
        ResponseCode::ServFail
    );
    assert_eq!(
        code(fixture.ask("llama3.proxima.internal.").await),
        ResponseCode::ServFail
    );
    assert_eq!(ips(&fixture.ask("example.com.").await), ["192.0.2.1"]);
    fixture.stop().await;
}

#[tokio::test]
async fn foreign_names_go_upstream_and_come_back_without_mesh_addresses() {
    let fixture = start(Some(view())).await;
    fixture.upstreams.set(vec![
        upstream(&[[192, 0, 2, 1], [10, 77, 0, 53], [10, 77, 9, 9]]).await,
    ]);
    let answer = fixture.ask("Example.com.").await;
    assert_eq!(ips(&answer), ["192.0.2.1"]);
    assert_eq!(
        (answer.metadata.id, answer.metadata.authoritative),
        (7, false)
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_question_is_never_sent_to_this_resolver_itself() {
    let fixture = start(Some(view())).await;
    for ip in [
        "10.77.0.53",
        "10.77.1.9",
        "127.0.0.1",
        "::ffff:127.0.0.1",
        "fdab:abab:abab::53",
    ] {
        fixture
            .upstreams
            .set(vec![SocketAddr::new(ip.parse().unwrap(), 53)]);
        let code = fixture.ask("example.com.").await.metadata.response_code;
        // The fixture listens on loopback, so loopback is itself there.
        assert_eq!(code, ResponseCode::Refused, "{ip}");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_dead_upstream_is_passed_over() {
    let fixture = start(Some(view())).await;
    let dead = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0))
        .await
        .unwrap();
    let dead_addr = dead.local_addr().unwrap();
    drop(dead);
    let live = upstream(&[[192, 0, 2, 9]]).await;
    fixture.upstreams.set(vec![dead_addr, live]);
    assert_eq!(ips(&fixture.ask("example.com.").await), ["192.0.2.9"]);
    fixture.stop().await;
}

#[test]
fn strangers_are_not_served() {
    let resolver = Resolver {
        zone: ArcSwapOption::empty(),
        keeper: Mutex::default(),
        hosts: Arc::default(),
        upstreams: Arc::default(),
        listening: vec![],
        connections: Semaphore::new(1),
    };
    resolver.rebuild(Some(&view()), &BTreeSet::new());
    let served = [
        "10.77.1.9",
        "10.77.0.53",
        "127.0.0.1",
        "::ffff:127.0.0.1",
        "fdab:abab:abab::53",
    ];
    assert!(
        served
            .iter()
            .all(|ip| resolver.is_served(ip.parse().unwrap()))
    );
    let strangers = ["10.77.1.1", "192.168.1.7", "fdab:abab:abab::1"];
    assert!(
        !strangers
            .iter()
            .any(|ip| resolver.is_served(ip.parse().unwrap()))
    );
}
