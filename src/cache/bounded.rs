//! A socket to Redis whose answers are bounded: a reply of a gigabyte, or one that never ends, is no reply to anything that is asked here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that may come for what was sent last, ...
const ANSWER: usize = 32 << 20;
/// ... where each line of the protocol counts for more: an element of three bytes takes so much within redis-rs.
const LINE: usize = 128;

/// Counts what arrives.
pub struct Bounded<S> {
    socket: S,
    left: usize,
}

impl<S> Bounded<S> {
    /// Around a connected socket.
    pub fn new(socket: S) -> Bounded<S> {
        Bounded { socket, left: ANSWER }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        let arrived = buffer.filled().get(before..).unwrap_or_default();
        let new = arrived.len() + LINE * arrived.iter().filter(|byte| **byte == b'\n').count();
        if new > self.left {
            let sentence = format!("Redis answers with more than fits into {} MiB", ANSWER >> 20);
            return Poll::Ready(Err(io::Error::other(sentence)));
        }
        self.left -= new;
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.left = ANSWER;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
