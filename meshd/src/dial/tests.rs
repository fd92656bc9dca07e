//! Tests of dialling: proxies' URLs, exceptions, and CONNECT with a small proxy on loopback.

use tokio::net::TcpListener;

use super::*;

#[test]
fn proxies_are_read_and_print_no_password() {
    let proxy = Proxy::parse("http://anna:s%40crét@proxy.example:8080/", "").unwrap();
    assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 8080));
    let login = BASE64.encode("anna:s@crét".as_bytes());
    assert_eq!(proxy.authorization, Some(format!("Basic {login}")));
    assert_eq!(format!("{proxy:?}"), "Proxy(proxy.example:8080)");
    let proxy = Proxy::parse("http://[fd00::1]", "").unwrap();
    assert_eq!((proxy.host.as_str(), proxy.port), ("fd00::1", PROXY_PORT));
    for bad in [
        "",
        "proxy:80",
        "https://proxy",
        "http://",
        "http://a%4@b",
        "socks5://b",
    ] {
        assert_eq!(Proxy::parse(bad, ""), Err(ProxyError), "{bad}");
    }
}

#[test]
fn exceptions_are_reached_straight() {
    let except = "intra.example, .corp,10.0.0.0/8,192.0.2.7";
    let proxy = Proxy::parse("http://proxy:80", except).unwrap();
    for host in [
        "intra.example",
        "a.intra.example",
        "x.CORP",
        "10.1.2.3",
        "192.0.2.7",
        "127.0.0.1",
        "localhost",
    ] {
        assert!(!proxy.serves(host), "{host}");
    }
    for host in ["example", "notintra.example", "192.0.2.8", "11.0.0.1"] {
        assert!(proxy.serves(host), "{host}");
    }
    assert!(!Proxy::parse("http://proxy:80", "*").unwrap().serves("any"));
}

#[test]
fn the_environment_names_a_proxy() {
    let var = |name: &str| match name {
        "https_proxy" => Some("http://proxy:81".to_owned()),
        "NO_PROXY" => Some("corp".to_owned()),
        _ => None,
    };
    let proxy = Proxy::of_environment(var).unwrap().unwrap();
    assert_eq!((proxy.port, proxy.serves("a.corp")), (81, false));
    assert_eq!(Proxy::of_environment(|_| None), Ok(None));
    assert_eq!(Proxy::of_environment(|_| Some(String::new())), Ok(None));
    assert!(Proxy::of_environment(|_| Some("nonsense".to_owned())).is_err());
}

/// Answers one CONNECT and gives back what was asked.
async fn proxy_that_says(answer: &'static str) -> (Dialer, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(asked).unwrap()
    });
    let proxy = Proxy::parse(&format!("http://u:p@127.0.0.1:{port}"), "").unwrap();
    (Dialer::new(Some(proxy)), task)
}

#[tokio::test]
async fn a_way_through_is_asked_for_and_what_follows_is_the_other_ends() {
    let (dialer, proxy) = proxy_that_says("HTTP/1.1 200 OK\r\nx: y\r\n\r\nhello").await;
    let mut stream = dialer.connect("fd00::9", 443).await.unwrap();
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    let asked = proxy.await.unwrap();
    assert!(asked.starts_with("CONNECT [fd00::9]:443 HTTP/1.1\r\nHost: [fd00::9]:443\r\n"));
    assert!(asked.contains("Proxy-Authorization: Basic dTpw\r\n"));
}

#[tokio::test]
async fn a_proxy_that_refuses_says_why() {
    for (answer, word) in [
        ("HTTP/1.1 407 Auth\r\n\r\n", "password"),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "403 Forbidden"),
        ("nonsense\r\n\r\n", "refuses"),
        ("HTTP/1.1 200", "proxy"),
    ] {
        let (dialer, _proxy) = proxy_that_says(answer).await;
        let err = dialer.connect("relay.example", 443).await.unwrap_err();
        assert!(err.to_string().contains(word), "{err}");
    }
}

#[test]
fn urls_are_taken_apart() {
    let of = |url| host_and_port(url);
    assert_eq!(
        of("https://[fd00::1]:7443/x"),
        Some(("fd00::1".to_owned(), 7443))
    );
    assert_eq!(
        of("https://mesh.example"),
        Some(("mesh.example".to_owned(), 443))
    );
    assert_eq!(of("http://mesh.example"), None);
    assert_eq!(of("https:///x"), None);
}
