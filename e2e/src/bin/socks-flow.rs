//! Bytes through a SOCKS5 proxy: a server that counts, and a client that sends, fetches, or ends one half before the other.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

const CHUNK: usize = 128 << 10;
/// Nothing here takes as long when it works.
const PATIENCE: Duration = Duration::from_secs(30);
const USAGE: &str = "socks-flow serve ADDR | put PROXY DST SECONDS | fetch PROXY DST SECONDS | halves PROXY DST BYTES";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", addr] => serve(addr),
        ["put", proxy, dst, seconds] => put(proxy, dst, seconds.parse()?),
        ["fetch", proxy, dst, seconds] => fetch(proxy, dst, seconds.parse()?),
        ["halves", proxy, dst, n_bytes] => halves(proxy, dst, n_bytes.parse()?),
        _ => bail!(USAGE),
    }
}

/// Serves one connection after the other, each by its first line.
fn serve(addr: &str) -> Result<()> {
    let listener = TcpListener::bind(addr).with_context(|| addr.to_owned())?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            if let Err(err) = answer(stream) {
                println!("{err:#}");
            }
        });
    }
    Ok(())
}

fn answer(stream: TcpStream) -> Result<()> {
    let mut reads = BufReader::with_capacity(CHUNK, stream.try_clone()?);
    let mut writes = stream;
    let mut order = String::new();
    reads.read_line(&mut order)?;
    match order.trim_end() {
        // Counts to the end, and only then says how much it was.
        "count" => {
            let n = drain(&mut reads)?;
            writes.write_all(format!("{n}\n").as_bytes())?;
        }
        // Ends its own half first, and counts after that.
        "greet" => {
            writes.write_all(b"hello\n")?;
            writes.shutdown(Shutdown::Write)?;
            let n = drain(&mut reads)?;
            println!("counted {n} after the end");
        }
        "send" => {
            let chunk = vec![7; CHUNK];
            while writes.write_all(&chunk).is_ok() {}
        }
        other => bail!("`{other}` is no order"),
    }
    Ok(())
}

fn drain(reads: &mut impl Read) -> Result<u64> {
    let mut room = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match reads.read(&mut room)? {
            0 => return Ok(total),
            n => total += u64::try_from(n)?,
        }
    }
}

/// A connection to an IPv4 address through the proxy.
fn connect(proxy: &str, dst: &str) -> Result<TcpStream> {
    let dst: SocketAddr = dst.parse().context("the destination")?;
    let SocketAddr::V4(dst) = dst else {
        bail!("the destination must be an IPv4 address");
    };
    let mut stream = TcpStream::connect(proxy).with_context(|| proxy.to_owned())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    ensure!(method == [5, 0], "the proxy says {method:?}");
    let port = dst.port().to_be_bytes();
    let request = [&[5, 1, 0, 1][..], &dst.ip().octets(), &port].concat();
    stream.write_all(&request)?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    ensure!(reply[1] == 0, "the proxy says {}", reply[1]);
    Ok(stream)
}

fn put(proxy: &str, dst: &str, seconds: f64) -> Result<()> {
    let mut stream = connect(proxy, dst)?;
    stream.write_all(b"count\n")?;
    let chunk = vec![7; CHUNK];
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    // Counted at the other end, and timed until it has counted all.
    let mut count = String::new();
    stream.read_to_string(&mut count)?;
    report(count.trim_end().parse()?, start);
    Ok(())
}

fn fetch(proxy: &str, dst: &str, seconds: f64) -> Result<()> {
    let mut stream = connect(proxy, dst)?;
    stream.write_all(b"send\n")?;
    let mut room = vec![0; CHUNK];
    let (start, mut total) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < seconds {
        let n = stream.read(&mut room)?;
        ensure!(n > 0, "it ended");
        total += u64::try_from(n)?;
    }
    report(total, start);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a rate, to three digits")]
fn report(n_bytes: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let gbps = n_bytes as f64 * 8.0 / seconds / 1e9;
    println!("{{\"bytes\":{n_bytes},\"seconds\":{seconds:.3},\"gbps\":{gbps:.4}}}");
}

/// Both ways in which one half ends before the other.
fn halves(proxy: &str, dst: &str, n_bytes: usize) -> Result<()> {
    let bytes = vec![7; n_bytes];
    let mut stream = connect(proxy, dst)?;
    stream.write_all(b"count\n")?;
    stream.write_all(&bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut count = String::new();
    stream.read_to_string(&mut count)?;
    ensure!(
        count.trim_end() == n_bytes.to_string(),
        "it counted {count:?}"
    );

    let mut stream = connect(proxy, dst)?;
    stream.write_all(b"greet\n")?;
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting)?;
    ensure!(greeting == "hello\n", "it said {greeting:?}");
    stream.write_all(&bytes)?;
    stream.shutdown(Shutdown::Write)?;
    println!("both halves");
    Ok(())
}
