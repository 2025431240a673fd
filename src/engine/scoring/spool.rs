//! Texts of many items: in memory while they are few, in a temporary file once 4 MiB are full.
//!
//! Whoever writes a text keeps its [`Place`] and reads it back from [`Texts`], alone or, where many are wanted
//! in the order in which they were written, through a [`Reader`] that reads ahead.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::error::{Error, Fault, Result, Stage};

/// Bytes of texts that are kept in memory before they go to a temporary file.
const IN_MEMORY: usize = 4 << 20;
/// Bytes that are read at once where texts are read in a row.
const AHEAD: usize = 64 << 10;
/// What messages call the temporary file.
const TEMPORARY: &str = "a temporary file";

/// Where an item's JSON lies among the texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub offset: u64,
    pub length: u32,
}

impl Place {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}

/// Texts as they are written: memory first, then a temporary file.
#[derive(Debug, Default)]
pub(super) struct Spill {
    memory: Vec<u8>,
    file: Option<File>,
    /// Bytes in the file.
    written: u64,
}

impl Spill {
    /// Writes an item as JSON.
    ///
    /// # Errors
    /// Where the temporary file cannot be written, or the item has 4 GiB or more.
    pub fn push<T: Serialize>(&mut self, item: &T) -> Result<Place> {
        let failed = |cause: String| {
            Fault::new(Stage::Tasks, format!("an item cannot be written out: {cause}")).fix("shorten it")
        };
        let start = self.memory.len();
        serde_json::to_writer(&mut self.memory, item).map_err(|err| failed(err.to_string()))?;
        let length = self.memory.len() - start;
        let length = u32::try_from(length).map_err(|_| failed(format!("it has {length} bytes")))?;
        let place = Place { offset: self.written + start as u64, length };
        if self.memory.len() > IN_MEMORY {
            self.flush()?;
        }
        Ok(place)
    }

    fn flush(&mut self) -> Result<()> {
        let failed = || Error::io("write items to", Path::new(TEMPORARY));
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile().map_err(failed())?),
        };
        file.write_all(&self.memory).map_err(failed())?;
        self.written += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// All that was written.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn finish(mut self) -> Result<Texts> {
        if self.file.is_some() {
            self.flush()?;
        }
        Ok(match self.file {
            Some(file) => Texts::File(Mutex::new(file), TEMPORARY.into()),
            None => {
                self.memory.shrink_to_fit();
                Texts::Memory(self.memory)
            }
        })
    }
}

/// Where items are written out.
#[derive(Debug)]
pub(super) enum Texts {
    Memory(Vec<u8>),
    File(Mutex<File>, PathBuf),
}

impl Default for Texts {
    fn default() -> Self {
        Self::Memory(Vec::new())
    }
}

impl Texts {
    /// Texts of a file that somebody else wrote, such as a journal.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        Ok(Self::File(Mutex::new(file), path.to_owned()))
    }

    /// One text.
    ///
    /// # Errors
    /// Where the file cannot be read, or is shorter than it was.
    pub fn read(&self, place: Place) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.fill(place, place.length as usize, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads many texts; fastest in the order in which they were written.
    pub fn reader(&self) -> Reader<'_> {
        Reader { texts: self, start: 0, buffer: Vec::new() }
    }

    /// The bytes from a place on: as many as it has at least, `wanted` if there are so many.
    fn fill(&self, place: Place, wanted: usize, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.clear();
        let wanted = wanted.max(place.length as usize);
        let read = match self {
            Self::Memory(all) => {
                let start = all.len().min(usize::try_from(place.offset).unwrap_or(usize::MAX));
                bytes.extend_from_slice(&all[start..all.len().min(start.saturating_add(wanted))]);
                Ok(bytes.len())
            }
            Self::File(file, _) => {
                bytes.reserve_exact(wanted);
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let at_place = file.seek(SeekFrom::Start(place.offset));
                at_place.and_then(|_| (&mut *file).take(wanted as u64).read_to_end(bytes))
            }
        };
        let whole = read.and_then(|read| {
            let is_whole = read >= place.length as usize;
            if is_whole { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
        });
        let path = match self {
            Self::Memory(_) => Path::new("memory"),
            Self::File(_, path) => path,
        };
        whole.map_err(Error::io("read items from", path))
    }
}

/// Reads texts one after the other, of a file some 64 KiB at once.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    texts: &'a Texts,
    /// Where the buffer's bytes begin in the file.
    start: u64,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// One text, which lies in the reader until the next is read.
    ///
    /// # Errors
    /// As for [`Texts::read`].
    pub fn read(&mut self, place: Place) -> Result<&[u8]> {
        let has_it = self.start <= place.offset && place.end() <= self.start + self.buffer.len() as u64;
        if !has_it {
            self.start = place.offset;
            // From memory nothing need be read ahead.
            let ahead = if matches!(self.texts, Texts::Memory(_)) { 0 } else { AHEAD };
            self.texts.fill(place, ahead, &mut self.buffer)?;
        }
        let from = (place.offset - self.start) as usize;
        Ok(&self.buffer[from..from + place.length as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts of many lengths, one of them longer than what is read at once.
    fn text(index: usize) -> String {
        let length = if index == 70 { AHEAD + 5 } else { index * 37 };
        char::from(b'a' + (index % 26) as u8).to_string().repeat(length)
    }

    fn written(count: usize, filler: usize) -> (Texts, Vec<Place>) {
        let mut spill = Spill::default();
        let places = (0..count).map(|index| spill.push(&text(index)).expect("room")).collect();
        if filler > 0 {
            spill.push(&"f".repeat(filler)).expect("room");
        }
        (spill.finish().expect("room"), places)
    }

    #[test]
    fn texts_come_back_in_any_order_from_memory_and_from_a_file() {
        for (filler, is_file) in [(0, false), (IN_MEMORY, true)] {
            let (texts, places) = written(200, filler);
            assert_eq!(matches!(texts, Texts::File(..)), is_file);
            let json = |index: usize| format!("\"{}\"", text(index)).into_bytes();
            let mut reader = texts.reader();
            for index in (0..200).chain((0..200).rev()).chain([7, 150, 8, 149]) {
                assert_eq!(reader.read(places[index]).expect("read"), json(index), "{index}");
                assert_eq!(texts.read(places[index]).expect("read"), json(index), "{index}");
            }
        }
    }

    #[test]
    fn a_text_beyond_the_end_is_an_error() {
        for filler in [0, IN_MEMORY] {
            let (texts, places) = written(10, filler);
            let whole = places[9].end() + if filler > 0 { filler as u64 + 2 } else { 0 };
            for place in [Place { offset: whole - 1, length: 2 }, Place { offset: whole + 100, length: 1 }] {
                assert!(texts.read(place).is_err() && texts.reader().read(place).is_err());
            }
            let mut reader = texts.reader();
            assert!(reader.read(Place { offset: whole, length: 1 }).is_err());
            assert_eq!(reader.read(places[3]).expect("goes on"), format!("\"{}\"", text(3)).as_bytes());
        }
    }
}
