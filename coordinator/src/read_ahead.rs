//! A stream that reads much at a time once much comes. TLS asks for 4 KiB at a time, and most connections never send
//! that much: only one that keeps sending gets a buffer, for as long as it does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So many full reads in a row mean that much comes.
const N_FULL_READS: u32 = 8;
const BUFFER_LEN: usize = 64 << 10;

/// A stream with a buffer when it is worth one.
#[derive(Debug)]
pub(crate) struct ReadAhead<S> {
    stream: S,
    n_full: u32,
    buffer: Vec<u8>,
    /// What of the buffer was read and not taken yet.
    start: usize,
    end: usize,
}

impl<S> ReadAhead<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            n_full: 0,
            buffer: Vec::new(),
            start: 0,
            end: 0,
        }
    }

    fn take(&mut self, out: &mut ReadBuf<'_>) {
        let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
        let n = waiting.len().min(out.remaining());
        out.put_slice(waiting.get(..n).unwrap_or_default());
        self.start += n;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.start < this.end {
            this.take(out);
            return Poll::Ready(Ok(()));
        }
        let n_wanted = out.remaining();
        if this.n_full < N_FULL_READS || n_wanted >= BUFFER_LEN {
            if !this.buffer.is_empty() {
                this.buffer = Vec::new();
            }
            ready!(Pin::new(&mut this.stream).poll_read(context, out))?;
            let is_full = out.remaining() == 0 && n_wanted > 0;
            this.n_full = if is_full { this.n_full + 1 } else { 0 };
            return Poll::Ready(Ok(()));
        }
        if this.buffer.is_empty() {
            this.buffer = vec![0; BUFFER_LEN];
        }
        let mut read = ReadBuf::new(&mut this.buffer);
        ready!(Pin::new(&mut this.stream).poll_read(context, &mut read))?;
        (this.start, this.end) = (0, read.filled().len());
        if this.end < n_wanted {
            this.n_full = 0;
        }
        this.take(out);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn much_is_read_as_it_came_and_the_buffer_goes_when_it_ends() {
        let (near, mut far) = duplex(200 << 10);
        let sent: Vec<u8> = (0..150_000_u32).map(|n| (n % 253) as u8).collect();
        far.write_all(&sent).await.unwrap();
        let mut stream = ReadAhead::new(near);
        let mut read = Vec::new();
        let mut part = [0; 4096];
        let mut had_buffer = false;
        while read.len() < sent.len() {
            let n = stream.read(&mut part).await.unwrap();
            read.extend_from_slice(&part[..n]);
            had_buffer |= !stream.buffer.is_empty();
        }
        assert_eq!(read, sent);
        assert!(had_buffer);
        far.write_all(b"little").await.unwrap();
        for _ in 0..2 {
            assert_eq!(stream.read(&mut part).await.unwrap(), 6);
            far.write_all(b"little").await.unwrap();
        }
        assert!(stream.buffer.is_empty());
        drop(far);
        assert_eq!(stream.read(&mut part).await.unwrap(), 6);
        assert_eq!(stream.read(&mut part).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_stream_that_says_little_gets_no_buffer() {
        let (near, mut far) = duplex(1024);
        let mut stream = ReadAhead::new(near);
        let mut part = [0; 4096];
        for _ in 0..20 {
            far.write_all(b"little").await.unwrap();
            assert_eq!(stream.read(&mut part).await.unwrap(), 6);
        }
        assert!(stream.buffer.is_empty());
    }
}
