//! Captures a script's stdout and stderr, up to a limit on their sum.

use super::system;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};

/// Default capacity of a pipe in bytes.
const BUFFER: usize = 64 << 10;

/// One captured stream.
pub(super) struct Stream {
    reader: Option<PipeReader>,
    kept: Vec<u8>,
}

impl Stream {
    /// Decodes the kept bytes as lossy UTF-8. A character cut in two by the limit is left out.
    pub fn text(&self) -> String {
        let complete = match std::str::from_utf8(&self.kept) {
            Err(error) if error.error_len().is_none() => &self.kept[..error.valid_up_to()],
            _ => &self.kept,
        };
        String::from_utf8_lossy(complete).into_owned()
    }
}

/// Both streams, kept up to a limit on their sum.
pub(super) struct Output {
    pub stdout: Stream,
    pub stderr: Stream,
    left: u64,
    over: bool,
    buffer: Vec<u8>,
}

impl Output {
    /// Captures from the read ends of two pipes, at most `limit` bytes in all.
    pub fn new(stdout: PipeReader, stderr: PipeReader, limit: u64) -> io::Result<Self> {
        system::set_nonblocking(stdout.as_fd())?;
        system::set_nonblocking(stderr.as_fd())?;
        let stream = |reader| Stream { reader: Some(reader), kept: Vec::new() };
        Ok(Self { stdout: stream(stdout), stderr: stream(stderr), left: limit, over: false, buffer: vec![0; BUFFER] })
    }

    /// Returns the pipes that are still open for reading.
    pub fn readers(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [&self.stdout, &self.stderr].map(|stream| stream.reader.as_ref().map(AsFd::as_fd))
    }

    /// True when there was more than the limit.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Reads everything that is available, without waiting. Closes both pipes once there is more than the limit.
    pub fn read(&mut self) -> io::Result<()> {
        for stream in [&mut self.stdout, &mut self.stderr] {
            while let Some(reader) = &mut stream.reader {
                match reader.read(&mut self.buffer) {
                    Ok(0) => stream.reader = None,
                    Ok(length) => {
                        let kept = (length as u64).min(self.left) as usize;
                        stream.kept.extend_from_slice(&self.buffer[..kept]);
                        self.left -= kept as u64;
                        if kept < length {
                            self.over = true;
                            stream.reader = None;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if self.over {
            (self.stdout.reader, self.stderr.reader) = (None, None);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_cut_by_the_limit_is_left_out_and_bad_bytes_are_shown() {
        let text = |bytes: &[u8]| Stream { reader: None, kept: bytes.to_vec() }.text();
        assert_eq!(text("né".as_bytes()), "né");
        assert_eq!(text(&"né".as_bytes()[..2]), "n");
        assert_eq!(text(b"a\xffb"), "a\u{fffd}b");
    }
}
