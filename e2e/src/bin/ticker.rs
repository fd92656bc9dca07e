//! A TCP stream that says when it moved: `ticker serve ADDR:PORT` writes a byte each 20 ms to whoever connects, `ticker
//! watch ADDR:PORT` prints for each read how many milliseconds since its start have passed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PAUSE: Duration = Duration::from_millis(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: ticker serve|watch ADDR:PORT";
    let role = args.next().context(usage)?;
    let address: SocketAddr = args.next().context(usage)?.parse().context(usage)?;
    match role.as_str() {
        "serve" => serve(address).await,
        "watch" => watch(address).await,
        _ => bail!(usage),
    }
}

async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Each ends with its connection; the lab ends the program.
        tokio::spawn(async move {
            while stream.write_all(b".").await.is_ok() {
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
}

async fn watch(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let start = Instant::now();
    let mut out = tokio::io::stdout();
    out.write_all(b"start\n").await?;
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).await? > 0 {
        let line = format!("tick {}\n", start.elapsed().as_millis());
        out.write_all(line.as_bytes()).await?;
        out.flush().await?;
    }
    bail!("the stream ended")
}
