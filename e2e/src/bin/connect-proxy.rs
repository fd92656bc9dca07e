//! An HTTP proxy that knows CONNECT and nothing else, as stands at the edge of a company: `connect-proxy ADDR:PORT`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

const HEAD_LEN_MAX: usize = 8 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let address: SocketAddr = std::env::args()
        .nth(1)
        .context("usage: connect-proxy ADDR:PORT")?
        .parse()?;
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Each ends with its connection; the lab ends the program.
        tokio::spawn(async move { drop(serve(stream).await) });
    }
}

async fn serve(mut client: TcpStream) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_LEN_MAX {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let mut words = head.split(' ');
    let (Some("CONNECT"), Some(target)) = (words.next(), words.next()) else {
        let refusal = b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n";
        return Ok(client.write_all(refusal).await?);
    };
    let Ok(mut server) = TcpStream::connect(target).await else {
        let refusal = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n";
        return Ok(client.write_all(refusal).await?);
    };
    // What is held back until more comes would look like loss.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
