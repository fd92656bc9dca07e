//! SOCKS5 (RFC 1928) without authentication: CONNECT by IPv4, IPv6 and name.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::in_time;
use super::reach::{Reach, Refusal, Target};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

const SUCCEEDED: u8 = 0;
const FAILED: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const HOST_UNREACHABLE: u8 = 4;
const CONNECTION_REFUSED: u8 = 5;
const NO_SUCH_COMMAND: u8 = 7;
const NO_SUCH_ADDRESS_TYPE: u8 = 8;

/// Serves one client up to the point where its bytes flow.
pub(super) async fn serve(mut stream: TcpStream, reach: &Reach) -> io::Result<()> {
    let (target, port) = in_time(negotiate(&mut stream)).await?;
    match reach.open(&target, port).await {
        Ok(reached) => {
            answer(&mut stream, SUCCEEDED).await?;
            reached.join(stream, Vec::new()).await
        }
        Err(refusal) => {
            tracing::debug!(%refusal, "a SOCKS5 client is refused");
            answer(&mut stream, code(refusal)).await
        }
    }
}

const fn code(refusal: Refusal) -> u8 {
    match refusal {
        Refusal::Foreign => NOT_ALLOWED,
        Refusal::NoName | Refusal::NoNode | Refusal::Silent => HOST_UNREACHABLE,
        Refusal::Refused | Refusal::NoService => CONNECTION_REFUSED,
        Refusal::Busy => FAILED,
    }
}

/// Hears what the client wants. What this proxy does not speak is answered as far as the protocol has an answer.
async fn negotiate<S>(stream: &mut S) -> io::Result<(Target, u16)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let [version, n_methods] = read(stream).await?;
    if version != VERSION {
        return Err(odd("no SOCKS5"));
    }
    let mut methods = vec![0; usize::from(n_methods)];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(odd("the client insists on authentication"));
    }
    stream.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let [version, command, _, kind] = read(stream).await?;
    if version != VERSION {
        return Err(odd("no SOCKS5"));
    }
    let target = match kind {
        IPV4 => Target::Ip(Ipv4Addr::from(read::<4, _>(stream).await?).into()),
        IPV6 => {
            let ip = Ipv6Addr::from(read::<16, _>(stream).await?);
            Target::Ip(ip.to_canonical())
        }
        NAME => {
            let [len] = read(stream).await?;
            let mut name = vec![0; usize::from(len)];
            stream.read_exact(&mut name).await?;
            let Ok(name) = String::from_utf8(name) else {
                answer(stream, HOST_UNREACHABLE).await?;
                return Err(odd("a name that is no text"));
            };
            // Some clients send addresses as names.
            name.parse().map_or(Target::Name(name), Target::Ip)
        }
        _ => {
            answer(stream, NO_SUCH_ADDRESS_TYPE).await?;
            return Err(odd("an address of an unknown kind"));
        }
    };
    let port = u16::from_be_bytes(read(stream).await?);
    if command != CONNECT {
        answer(stream, NO_SUCH_COMMAND).await?;
        return Err(odd("a command other than CONNECT"));
    }
    Ok((target, port))
}

async fn read<const N: usize, S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The address that the answer may tell is of no use to a client: zeros, as many proxies send.
async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, code: u8) -> io::Result<()> {
    stream
        .write_all(&[VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0])
        .await
}

fn odd(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the proxy makes of all that a client ever sends, and what it says meanwhile.
    fn hear(sent: &[u8]) -> (io::Result<(Target, u16)>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut client, mut proxy) = tokio::io::duplex(4096);
            client.write_all(sent).await.unwrap();
            client.shutdown().await.unwrap();
            let heard = negotiate(&mut proxy).await;
            drop(proxy);
            let mut said = Vec::new();
            client.read_to_end(&mut said).await.unwrap();
            (heard, said)
        })
    }

    fn asked(request: &[u8]) -> (io::Result<(Target, u16)>, Vec<u8>) {
        hear(&[&[5, 2, 2, 0], request].concat())
    }

    #[test]
    fn every_kind_of_destination_is_understood() {
        let name = [&[5, 1, 0, 3, 16], &b"llama3.2.proxima"[..], &[0x2c, 0xaa]].concat();
        let as_name = [&[5, 1, 0, 3, 9], &b"10.77.1.0"[..], &[0, 80]].concat();
        let v6 = [&[5, 1, 0, 4][..], &[0xfd; 16], &[1, 187]].concat();
        let mapped = [
            &[5, 1, 0, 4][..],
            &[0; 10],
            &[0xff, 0xff, 10, 77, 1, 0],
            &[0, 80],
        ]
        .concat();
        let ip = |text: &str| Target::Ip(text.parse().unwrap());
        let cases = [
            (vec![5, 1, 0, 1, 10, 77, 1, 0, 0, 80], ip("10.77.1.0"), 80),
            (name, Target::Name("llama3.2.proxima".to_owned()), 11_434),
            (as_name, ip("10.77.1.0"), 80),
            (v6, ip("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"), 443),
            (mapped, ip("10.77.1.0"), 80),
        ];
        for (request, target, port) in cases {
            let (heard, said) = asked(&request);
            assert_eq!(heard.unwrap(), (target, port));
            assert_eq!(said, [5, 0]);
        }
    }

    #[test]
    fn what_is_not_spoken_is_refused_in_the_words_of_the_protocol() {
        let refused = |code| [&[5, 0][..], &[5, code, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        for command in [2, 3, 0x80] {
            let (heard, said) = asked(&[5, command, 0, 1, 10, 77, 1, 0, 0, 80]);
            assert!(heard.is_err());
            assert_eq!(said, refused(NO_SUCH_COMMAND));
        }
        let (heard, said) = asked(&[5, 1, 0, 9, 1, 2, 3]);
        assert!(heard.is_err());
        assert_eq!(said, refused(NO_SUCH_ADDRESS_TYPE));
        let (heard, said) = asked(&[5, 1, 0, 3, 2, 0xff, 0xfe, 0, 80]);
        assert!(heard.is_err());
        assert_eq!(said, refused(HOST_UNREACHABLE));
        let (heard, said) = hear(&[5, 1, 2]);
        assert!(heard.is_err());
        assert_eq!(said, [5, NO_METHOD]);
        for other in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[4, 1, 0, 80, 10, 77, 1, 0, 0],
            &[],
        ] {
            let (heard, said) = hear(other);
            assert!(heard.is_err() && said.is_empty(), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_upset_the_proxy(
            greeting in prop_oneof![Just(vec![5, 1, 0]), proptest::collection::vec(any::<u8>(), 0..8)],
            request in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let (_, said) = hear(&[greeting, request].concat());
            prop_assert!(said.len() <= 12);
        }
    }
}
