//! Known bytes over TCP: `bulk serve ADDR:PORT` sends and takes them, `bulk down|up ADDR:PORT BYTES PAUSE_MS` moves so many,
//! a block each so many milliseconds, checks each byte, and prints `begun` after the first block and `done MS` at the end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const USAGE: &str = "usage: bulk serve ADDR:PORT | down|up ADDR:PORT BYTES PAUSE_MS";
const BLOCK: usize = 64 << 10;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// What a side was asked for: direction, bytes, pause.
const REQUEST_LEN: usize = 17;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (role, address) = match args.as_slice() {
        [role, address, ..] => (role.as_str(), address.parse().context(USAGE)?),
        _ => bail!(USAGE),
    };
    let number = |at: usize| -> Result<u64> { args.get(at).context(USAGE)?.parse().context(USAGE) };
    match role {
        "serve" => serve(address).await,
        "down" => fetch(address, DOWN, number(2)?, number(3)?).await,
        "up" => fetch(address, UP, number(2)?, number(3)?).await,
        _ => bail!(USAGE),
    }
}

async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Each ends with its connection; the lab ends the program.
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    let mut request = [0; REQUEST_LEN];
    stream.read_exact(&mut request).await?;
    let (len, pause_ms) = (number_at(&request, 1), number_at(&request, 9));
    if request[0] == DOWN {
        return send(&mut stream, len, pause_ms).await;
    }
    receive(&mut stream, len).await?;
    stream.write_all(b"k").await?;
    Ok(())
}

async fn fetch(address: SocketAddr, direction: u8, len: u64, pause_ms: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let start = Instant::now();
    let mut request = vec![direction];
    request.extend(len.to_be_bytes());
    request.extend(pause_ms.to_be_bytes());
    stream.write_all(&request).await?;
    if direction == DOWN {
        receive(&mut stream, len).await?;
    } else {
        send(&mut stream, len, pause_ms).await?;
        let mut verdict = [0];
        stream
            .read_exact(&mut verdict)
            .await
            .context("the bytes were not right")?;
    }
    say(&format!("done {}", start.elapsed().as_millis())).await
}

async fn send(stream: &mut TcpStream, len: u64, pause_ms: u64) -> Result<()> {
    let mut at = 0;
    while at < len {
        let end = len.min(at + BLOCK as u64);
        let block: Vec<u8> = (at..end).map(byte_at).collect();
        stream.write_all(&block).await?;
        if at == 0 {
            say("begun").await?;
        }
        at = end;
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
    Ok(())
}

async fn receive(stream: &mut TcpStream, len: u64) -> Result<()> {
    let (mut at, mut bytes) = (0_u64, vec![0; BLOCK]);
    while at < len {
        let n = stream.read(&mut bytes).await?;
        ensure!(n > 0, "the stream ended after {at} of {len} bytes");
        if at == 0 {
            say("begun").await?;
        }
        for byte in bytes.iter().take(n) {
            ensure!(*byte == byte_at(at), "byte {at} is wrong");
            at += 1;
        }
    }
    Ok(())
}

/// Differs from its neighbours and from one block to the next.
fn byte_at(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn number_at(request: &[u8; REQUEST_LEN], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&request[at..at + 8]);
    u64::from_be_bytes(bytes)
}

async fn say(line: &str) -> Result<()> {
    let mut out = tokio::io::stdout();
    out.write_all(format!("{line}\n").as_bytes()).await?;
    out.flush().await?;
    Ok(())
}
