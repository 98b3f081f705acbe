//! Events on their way: cut into parts by user, in memory while they are few, on disk beyond that.

use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};
use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Parts that the users are cut into. What is in memory at a time is a part and a part's buffer.
pub(super) const PARTS: usize = 256;
/// Bytes of a part that are kept in memory before they go to disk.
const BUFFER: usize = 1 << 20;

/// The fixed beginning of a stored event; its query and its logged history follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Head {
    /// As in the log.
    pub time: i64,
    /// Events of a user with the same task and request answer one request; 0: it stands alone.
    pub request: u64,
    pub user: u32,
    pub item: u32,
    /// Bytes of the query that follows.
    pub query: u32,
    /// Items of the logged history behind it.
    pub history: u16,
    pub task: u8,
    /// Bit 0: wanted. Bit 1: of the source's own test. Bit 2: the time must be looked up.
    pub flags: u8,
}

pub(super) const WANTED: u8 = 1;
pub(super) const TEST: u8 = 2;
pub(super) const UNTIMED: u8 = 4;

const HEAD: usize = size_of::<Head>();

/// An event with what follows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event<'a> {
    pub head: Head,
    /// The query, then the history.
    tail: &'a [u8],
}

impl<'a> Event<'a> {
    /// What was typed, as stored.
    pub fn query_bytes(&self) -> &'a [u8] {
        &self.tail[..self.head.query as usize]
    }
    /// What was typed. Only text is ever stored.
    pub fn query(&self) -> &'a str {
        std::str::from_utf8(self.query_bytes()).unwrap_or_default()
    }
    pub fn is(&self, flag: u8) -> bool {
        self.head.flags & flag != 0
    }
    /// The history that the log gives with it.
    pub fn history(&self) -> impl Iterator<Item = u32> + '_ {
        let history = &self.tail[self.head.query as usize..];
        history.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
    /// Appends it to a part.
    pub fn store(&self, part: &mut Vec<u8>) {
        part.extend_from_slice(bytemuck::bytes_of(&self.head));
        part.extend_from_slice(self.tail);
    }
}

/// The events of a part, in the order in which they were stored.
pub(super) fn events(part: &[u8]) -> impl Iterator<Item = Event<'_>> {
    let mut rest = part;
    std::iter::from_fn(move || {
        let (head, tail) = rest.split_at_checked(HEAD)?;
        let head: Head = bytemuck::pod_read_unaligned(head);
        let (tail, after) = tail.split_at_checked(head.query as usize + head.history as usize * 4)?;
        rest = after;
        Some(Event { head, tail })
    })
}

/// The same, all at hand.
pub(super) fn all_events(part: &[u8]) -> Vec<Event<'_>> {
    let mut all = Vec::with_capacity(part.len() / HEAD);
    all.extend(events(part));
    all
}

/// The events of all users.
pub(super) struct Spool {
    directory: PathBuf,
    parts: Vec<Vec<u8>>,
    files: Vec<Option<File>>,
    generation: usize,
}

impl Spool {
    /// A spool whose files, if it needs any, go into `directory`.
    pub fn new(directory: &Path) -> Self {
        let (parts, files) = (vec![Vec::new(); PARTS], (0..PARTS).map(|_| None).collect());
        Self { directory: directory.into(), parts, files, generation: 0 }
    }
    /// Adds an event.
    pub fn push(&mut self, head: Head, query: &str, history: &[u32]) -> Result<()> {
        let number = head.user as usize % PARTS;
        let part = &mut self.parts[number];
        part.extend_from_slice(bytemuck::bytes_of(&head));
        part.extend_from_slice(query.as_bytes());
        for item in history {
            part.extend_from_slice(&item.to_le_bytes());
        }
        if part.len() >= BUFFER { self.flush(number) } else { Ok(()) }
    }
    fn path(&self, number: usize) -> PathBuf {
        self.directory.join(format!("events-{}-{number}", self.generation))
    }
    fn flush(&mut self, number: usize) -> Result<()> {
        let path = self.path(number);
        let failed = |e| Error::io("write", &path, e);
        if self.files[number].is_none() {
            let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
            self.files[number] = Some(file);
        }
        if let Some(file) = &mut self.files[number] {
            file.write_all(&self.parts[number]).map_err(failed)?;
        }
        self.parts[number].clear();
        Ok(())
    }
    /// All events of part `number`.
    pub fn load(&self, number: usize) -> Result<Cow<'_, [u8]>> {
        let rest = &self.parts[number];
        if self.files[number].is_none() {
            return Ok(Cow::Borrowed(rest));
        }
        let (path, mut bytes) = (self.path(number), Vec::new());
        let mut file = File::open(&path).map_err(|e| Error::io("read", &path, e))?;
        file.read_to_end(&mut bytes).map_err(|e| Error::io("read", &path, e))?;
        bytes.extend_from_slice(rest);
        Ok(Cow::Owned(bytes))
    }
    /// Puts `bytes` in the place of part `number`.
    pub fn replace(&mut self, number: usize, bytes: Vec<u8>) -> Result<()> {
        if self.files[number].take().is_some() {
            let path = self.path(number);
            std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
        self.parts[number] = bytes;
        if self.parts[number].len() >= BUFFER {
            self.flush(number)?;
            // Nothing more is added: what held a whole part is given back.
            self.parts[number] = Vec::new();
        }
        Ok(())
    }
}
