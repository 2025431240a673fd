//! Files that are read once from beginning to end: hashed on the way, and line by line where they have lines.

use std::io::{self, BufRead as _, BufReader, Read};

use crate::error::{Fault, Stage};

/// Longest line.
pub(super) const MAX_LINE_BYTES: usize = 4 << 20;
/// Bytes that are read from the file at once.
const BUFFER: usize = 256 << 10;
/// A byte order mark in UTF-8.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// Hashes what is read through it.
pub(super) struct Hashing<R> {
    inner: R,
    hasher: blake3::Hasher,
    /// Bytes that may be read before [`Self::renew`].
    most: usize,
    left: usize,
}

impl<R: Read> Hashing<R> {
    /// Reads `inner`, and no more than `most` bytes of it between two calls of [`Self::renew`].
    pub fn new(inner: R, most: usize) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), most, left: most }
    }

    /// Lets as many bytes be read as at the beginning.
    pub fn renew(&mut self) {
        self.left = self.most;
    }

    /// BLAKE3 of what was read, in hex.
    pub fn hash(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        if read > self.left {
            return Err(io::Error::other(format!(
                "a row has more than {} bytes: is a quotation mark open?",
                self.most
            )));
        }
        self.left -= read;
        self.hasher.update(&out[..read]);
        Ok(read)
    }
}

/// Lines of a file, of which one is held.
pub(super) struct Lines<R> {
    reader: BufReader<Hashing<R>>,
    line: Vec<u8>,
    /// Bytes of a line that is too long which were passed over.
    beyond: usize,
    number: usize,
}

impl<R: Read> Lines<R> {
    pub fn new(file: R) -> Self {
        let reader = BufReader::with_capacity(BUFFER, Hashing::new(file, usize::MAX));
        Self { reader, line: Vec::new(), beyond: 0, number: 0 }
    }

    /// Reads the next line; false at the end of the file.
    pub fn advance(&mut self) -> io::Result<bool> {
        self.line.clear();
        self.beyond = 0;
        self.reader.get_mut().renew();
        // A little more, for the end of the line and a byte order mark.
        let most = MAX_LINE_BYTES + 8;
        let read = (&mut self.reader).take(most as u64).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(false);
        }
        self.number += 1;
        if self.line.pop_if(|byte| *byte == b'\n').is_some() {
            self.line.pop_if(|byte| *byte == b'\r');
        } else if read == most {
            self.beyond = self.pass_over()?;
        }
        if self.number == 1 {
            while self.line.starts_with(MARK) {
                self.line.drain(..MARK.len());
            }
        }
        Ok(true)
    }

    /// The number of bytes up to the end of the line.
    fn pass_over(&mut self) -> io::Result<usize> {
        let mut count = 0;
        loop {
            let buffer = self.reader.fill_buf()?;
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let passed = end.unwrap_or(buffer.len());
            let is_end = end.is_some() || buffer.is_empty();
            self.reader.consume(passed + usize::from(end.is_some()));
            count += passed;
            if is_end {
                return Ok(count);
            }
        }
    }

    /// The number of the line, from one on.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The line that was read, without its end and without a byte order mark.
    pub fn text(&self) -> Result<&str, Fault> {
        let bytes = self.line.len() + self.beyond;
        if bytes > MAX_LINE_BYTES || self.beyond > 0 {
            let cause = format!("the line has {bytes} bytes, more than {MAX_LINE_BYTES}");
            return Err(Fault::new(Stage::Tasks, cause).fix("shorten the prompt"));
        }
        std::str::from_utf8(&self.line)
            .map_err(|_| Fault::new(Stage::Tasks, "the text is not UTF-8").fix("save the file as UTF-8"))
    }

    /// BLAKE3 of the file in hex, once its end was reached.
    pub fn hash(&self) -> String {
        self.reader.get_ref().hash()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as read, with the file's hash.
    fn lines(bytes: &[u8]) -> (Vec<Result<String, String>>, String) {
        let mut lines = Lines::new(bytes);
        let mut found = Vec::new();
        while lines.advance().expect("memory") {
            found.push(lines.text().map(str::to_owned).map_err(|fault| fault.cause));
            assert_eq!(lines.number(), found.len());
        }
        (found, lines.hash())
    }

    #[test]
    fn lines_end_as_str_lines_and_every_byte_is_hashed() {
        let text = "\u{feff}first\r\n\n \u{e9}\r\r\nlast\u{feff}";
        let (found, hash) = lines(text.as_bytes());
        let expected: Vec<_> = text.trim_start_matches('\u{feff}').lines().map(|line| Ok(line.to_owned())).collect();
        assert_eq!(found, expected);
        assert_eq!(hash, blake3::hash(text.as_bytes()).to_hex().to_string());
        assert_eq!(lines(b""), (Vec::new(), blake3::hash(b"").to_hex().to_string()));
        assert_eq!(lines(b"\n").0, [Ok(String::new())]);
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_counted() {
        let fits = "x".repeat(MAX_LINE_BYTES);
        for more in [1, 7, 8, 9, 3 * BUFFER] {
            let text = format!("{fits}\r\n{fits}{}\n\u{e9}\n", "y".repeat(more));
            let (found, hash) = lines(text.as_bytes());
            assert!(found[0].as_ref().is_ok_and(|line| *line == fits));
            let cause = format!("the line has {} bytes, more than {MAX_LINE_BYTES}", MAX_LINE_BYTES + more);
            assert_eq!(found[1..], [Err(cause), Ok("\u{e9}".to_owned())]);
            assert_eq!(hash, blake3::hash(text.as_bytes()).to_hex().to_string());
        }
    }

    #[test]
    fn a_row_without_an_end_is_refused() {
        let mut reader = Hashing::new([b'x'; 100].as_slice(), 60);
        let mut out = [0; 40];
        assert_eq!(reader.read(&mut out).expect("fits"), 40);
        reader.renew();
        assert_eq!(reader.read(&mut out).expect("fits"), 40);
        assert_eq!(reader.read(&mut out[..20]).expect("fits"), 20);
        assert_eq!(reader.hash(), blake3::hash(&[b'x'; 100]).to_hex().to_string());
        let mut reader = Hashing::new([b'x'; 100].as_slice(), 60);
        assert_eq!(reader.read(&mut out).expect("fits"), 40);
        assert!(reader.read(&mut out).expect_err("too many").to_string().contains("more than 60 bytes"));
    }
}
