//! A Parquet file's bytes, for a decoder that believes what headers say of sizes.

use crate::error::{Error, Result};
use bytes::Bytes;
use parquet::errors::{ParquetError, Result as Decoded};
use parquet::file::reader::{ChunkReader, Length};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// A file of which nothing can be read beyond its end, nor be allocated for it.
pub(super) struct ParquetFile {
    file: File,
    length: u64,
}

impl ParquetFile {
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let length = file.metadata().map_err(|e| Error::io("open", path, e))?.len();
        Ok(Self { file, length })
    }
}

impl Length for ParquetFile {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for ParquetFile {
    type T = Ending<BufReader<File>>;

    fn get_read(&self, start: u64) -> Decoded<Self::T> {
        Ok(Ending(self.file.get_read(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Decoded<Bytes> {
        if start.saturating_add(length as u64) > self.length {
            let what = format!("{length} bytes from {start} on, of {}", self.length);
            return Err(ParquetError::EOF(what));
        }
        self.file.get_bytes(start, length)
    }
}

/// Refuses to be read beyond its end. The decoder passes over what it has no use for by its count, up to 2^31 numbers one by
/// one, and does not notice that there are none left.
pub(super) struct Ending<R>(R);

impl<R: Read> Read for Ending<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self.0.read(to)? {
            0 if !to.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}
