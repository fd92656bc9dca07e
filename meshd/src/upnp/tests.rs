//! Gateways of several kinds, each at a loopback address of its own.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::shape::tests::IGD2;
use super::*;

/// What a gateway answers to an action; `None` for its description.
type Answers = fn(Option<&str>, &str) -> String;

/// A gateway, and what it was asked.
struct Gateway {
    order: UpnpOrder,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Gateway {
    /// One that answers searches and HTTP. Each test has a gateway of its own number.
    async fn start(n: u8, answers: Answers) -> Self {
        let ip = Ipv4Addr::new(127, 0, 77, n);
        let ssdp = UdpSocket::bind((ip, SSDP_PORT)).await.unwrap();
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut question = [0; 2048];
            while let Ok((len, from)) = ssdp.recv_from(&mut question).await {
                let question = String::from_utf8_lossy(&question[..len]).into_owned();
                let (_, rest) = question.split_once("\r\nST: ").unwrap();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nST: {}\r\nLOCATION: http://{ip}:{port}/root.xml\r\n\r\n",
                    rest.trim()
                );
                ssdp.send_to(answer.as_bytes(), from).await.unwrap();
            }
        });
        let log = Arc::clone(&asked);
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut read = vec![];
                let request = loop {
                    if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                        break String::new();
                    }
                    let text = String::from_utf8_lossy(&read).into_owned();
                    let is_whole = text.starts_with("GET ") && text.ends_with("\r\n\r\n");
                    if is_whole || text.contains("</s:Envelope>") {
                        break text;
                    }
                };
                let action = request
                    .split_once('#')
                    .and_then(|(_, rest)| Some(rest.split_once('"')?.0));
                log.lock()
                    .unwrap()
                    .push(action.unwrap_or("description").to_owned());
                // Who asked may have hung up before it was told all.
                let _ = stream.write_all(answers(action, &request).as_bytes()).await;
            }
        });
        let order = UpnpOrder {
            gateway: ip,
            client: Ipv4Addr::LOCALHOST,
            port: 41_820,
            lifetime_s: 600,
        };
        Self {
            order,
            asked,
            _tasks: tasks,
        }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.0 {status}\r\nContent-Type: text/xml\r\n\r\n{body}")
}

fn told(name: &str, value: &str) -> String {
    http("200 OK", &format!("<a><b><{name}>{value}</{name}></b></a>"))
}

fn fault(code: u32) -> String {
    http(
        "500 Internal Server Error",
        &format!("<a><errorCode>{code}</errorCode></a>"),
    )
}

fn igd2(action: Option<&str>, _request: &str) -> String {
    match action {
        None => http("200 OK", IGD2),
        Some("GetExternalIPAddress") => told("NewExternalIPAddress", "198.51.100.7"),
        Some("AddAnyPortMapping") => told("NewReservedPort", "5001"),
        Some(_) => http("200 OK", "<a/>"),
    }
}

#[tokio::test]
async fn a_gateway_of_version_2_maps_renews_and_is_told_of_the_end() {
    let gateway = Gateway::start(1, igd2).await;
    let mut known = None;
    let order = gateway.order;
    let outer = "198.51.100.7:5001".parse().unwrap();
    let mapped = carry_out_one(order, &mut known).await.unwrap();
    assert_eq!(mapped, Some((outer, 600)));
    assert_eq!(
        gateway.asked(),
        ["description", "GetExternalIPAddress", "AddAnyPortMapping"]
    );
    // It keeps the outer port, and need not be searched for again.
    let mapped = carry_out_one(order, &mut known).await.unwrap();
    assert_eq!(mapped, Some((outer, 600)));
    assert_eq!(gateway.asked(), ["GetExternalIPAddress", "AddPortMapping"]);
    let end = UpnpOrder {
        lifetime_s: 0,
        ..order
    };
    assert_eq!(carry_out_one(end, &mut known).await.unwrap(), None);
    assert_eq!(gateway.asked(), ["DeletePortMapping"]);
    assert_eq!(carry_out_one(end, &mut known).await.unwrap(), None);
    assert!(
        gateway.asked().is_empty(),
        "there is nothing to end any more"
    );
}

/// Has given the inner port to another machine, and maps without an end alone.
fn stubborn(action: Option<&str>, request: &str) -> String {
    let has = |text: &str| request.contains(text);
    match action {
        None => http(
            "200 OK",
            &IGD2.replace("WANIPConnection:2", "WANIPConnection:1"),
        ),
        Some("GetExternalIPAddress") => told("NewExternalIPAddress", "198.51.100.7"),
        Some("AddPortMapping") if has("<NewExternalPort>41820<") => fault(718),
        Some("AddPortMapping") if !has("<NewLeaseDuration>0<") => fault(725),
        Some("AddPortMapping") => http("200 OK", "<a/>"),
        Some(_) => fault(401),
    }
}

#[tokio::test]
async fn a_gateway_of_version_1_is_humoured() {
    let gateway = Gateway::start(2, stubborn).await;
    let mapped = carry_out_one(gateway.order, &mut None).await.unwrap();
    let (outer, lifetime_s) = mapped.unwrap();
    assert_eq!(outer.ip(), IpAddr::from([198, 51, 100, 7]));
    assert!(outer.port() >= 1024 && outer.port() != 41_820, "{outer}");
    assert_eq!(lifetime_s, PERMANENT_S);
    let asked = gateway.asked();
    let add = "AddPortMapping";
    assert_eq!(
        asked,
        ["description", "GetExternalIPAddress", add, add, add]
    );
}

#[tokio::test]
async fn redirects_refusals_and_floods_end_in_an_error() {
    let cases: [(u8, Answers); 4] = [
        (3, |_, _| {
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.77.1/\r\nContent-Length: 0\r\n\r\n"
                .to_owned()
        }),
        (4, |_, _| http("200 OK", &"<a>".repeat(100_000))),
        (5, |action, _| match action {
            None => http("200 OK", IGD2),
            Some(_) => fault(606),
        }),
        (6, |_, _| "NONSENSE\r\n\r\n".to_owned()),
    ];
    for (n, answers) in cases {
        let gateway = Gateway::start(n, answers).await;
        let err = carry_out_one(gateway.order, &mut None).await.unwrap_err();
        let is_expected = match n {
            3 => matches!(err, UpnpError::Refused { status: 302, .. }),
            5 => matches!(
                err,
                UpnpError::Refused {
                    status: 500,
                    code: Some(606)
                }
            ),
            _ => matches!(err, UpnpError::Http(_)),
        };
        assert!(is_expected, "{n}: {err}");
        assert!(gateway.asked().len() <= 2);
    }
}

#[tokio::test]
async fn orders_are_answered_in_turn_and_the_task_ends() {
    let gateway = Gateway::start(7, igd2).await;
    let mut upnp = Upnp::start();
    let silent = UpnpOrder {
        gateway: [127, 0, 77, 99].into(),
        ..gateway.order
    };
    upnp.order(silent);
    upnp.order(gateway.order);
    assert_eq!(upnp.done().await, (silent, None));
    let mapped = Some(("198.51.100.7:5001".parse().unwrap(), 600));
    assert_eq!(upnp.done().await, (gateway.order, mapped));
    gateway.asked();
    upnp.order(UpnpOrder {
        lifetime_s: 0,
        ..gateway.order
    });
    upnp.stop().await;
    assert_eq!(gateway.asked(), ["DeletePortMapping"]);
}
