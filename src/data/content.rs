//! The text of a file, told by its content: packed or not, in which encoding, or what it is that has none.

use crate::error::{Error, Result};
use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Chain, Cursor, ErrorKind, Read};
use std::path::Path;

/// Bytes that are looked at before a file is read.
const HEAD: usize = 1 << 12;
const BUFFER: usize = 1 << 18;

/// Beginnings of files that hold no text, what they are, and the way out.
const FOREIGN: &[(&[u8], &str, &str)] = &[
    (b"\xfd7zXZ\0", "xz", "unpack it: xz -d FILE"),
    (b"\x04\x22\x4d\x18", "lz4", "unpack it: lz4 -d FILE"),
    (b"\xff\x06\0\0sNaPpY", "framed Snappy", "unpack it, or pack it with gzip or zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", "unpack it"),
    (b"Rar!\x1a\x07", "RAR", "unpack it"),
    (b"\x1f\x9d", "compress (.Z)", "unpack it: uncompress FILE"),
    (b"PK\x03\x04", "a ZIP archive (or an Excel workbook)", "unpack it; save a workbook as .csv or .parquet"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook", "save it as .csv or .parquet"),
    (b"PARE", "encrypted Parquet", "write it without encryption"),
    (b"Obj\x01", "Avro", "write it as .parquet or .jsonl"),
    (b"ARROW1", "an Arrow (Feather) file", "write it as .parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "write it as .parquet"),
    (b"FEA1", "a Feather file", "write it as .parquet"),
    (b"SEQ\x06", "a Hadoop sequence file", "write it as .parquet or .jsonl"),
    (b"SQLite format 3\0", "an SQLite database", "export the table as .csv"),
    (b"\x89HDF\r\n\x1a\n", "HDF5", "write the table as .parquet"),
    (b"\x93NUMPY", "a numpy array", "write it as .csv or .parquet"),
    (b"%PDF-", "a PDF", "is this the right file?"),
    (
        b"version https://git-lfs",
        "the pointer of a file in large-file storage",
        "fetch the file itself: git lfs pull",
    ),
    (b"\xff\xfe\0\0", "UTF-32", "save it as UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32", "save it as UTF-8"),
];

/// Whether a file is Parquet. What cannot be looked at twice (a pipe) is not.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn is_parquet(path: &Path) -> Result<bool> {
    let failed = |e| Error::io("open", path, e);
    if !path.metadata().map_err(failed)?.is_file() {
        return Ok(false);
    }
    let mut file = File::open(path).map_err(failed)?;
    Ok(head(&mut file, 4).map_err(|e| Error::io("read", path, e))? == b"PAR1")
}

/// The text of the bytes of `path`, unpacked and as UTF-8 where it says how it is packed and encoded: gzip, zstd, a
/// byte order mark. What carries no mark is handed over as it is, or read in the `encoding` that is given.
///
/// # Errors
/// What holds no text, by its name; a stream that cannot be read.
pub(crate) fn text(
    path: &Path,
    mut stream: impl Read + 'static,
    encoding: Option<&'static Encoding>,
) -> Result<Box<dyn BufRead>> {
    let failed = |e| Error::io("read", path, e);
    let first = head(&mut stream, HEAD).map_err(failed)?;
    refuse_foreign(path, &first)?;
    let packed = Packing::of(&first);
    let stream = BufReader::with_capacity(BUFFER, Cursor::new(first).chain(stream));
    match packed {
        Packing::None => decoded(path, stream, encoding),
        Packing::Gzip => decoded(path, flate2::bufread::MultiGzDecoder::new(stream), encoding),
        Packing::Zstd => {
            let unpacked = zstd::stream::read::Decoder::with_buffer(stream);
            decoded(path, unpacked.map_err(|e| Error::io("unpack", path, e))?, encoding)
        }
    }
}

enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            _ => Packing::None,
        }
    }
}

/// The first bytes of a stream, fewer at its end.
fn head(stream: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    stream.take(most as u64).read_to_end(&mut head)?;
    Ok(head)
}

fn refuse_foreign(path: &Path, head: &[u8]) -> Result<()> {
    let known =
        FOREIGN.iter().find(|(magic, ..)| head.starts_with(magic)).map(|(_, what, way)| (*what, *way));
    let known = known.or_else(|| match head {
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', ..] => Some(("bzip2", "unpack it: bunzip2 FILE")),
        [0x80, 2..=5, ..] if head.contains(&b'.') => {
            Some(("a Python pickle", "write it as .csv or .parquet"))
        }
        [b'O', b'R', b'C', ..] if head.contains(&0) => Some(("ORC", "write it as .parquet")),
        [b'P', b'A', b'R', b'1', ..] => {
            Some(("Parquet, packed or in a pipe", "unpack it: it is read from both ends"))
        }
        _ if head.get(257..262) == Some(b"ustar") => Some(("a tar archive", "unpack it: tar -xf FILE")),
        _ if is_html(head) => Some(("a web page", "download the file itself")),
        _ => None,
    });
    match known {
        Some((what, way)) => Err(Error::data(format!("this is {what}")).at(path.display()).remedy(way)),
        None => Ok(()),
    }
}

fn is_html(head: &[u8]) -> bool {
    let head = head.trim_ascii_start();
    [&b"<!doctype html"[..], b"<html"]
        .iter()
        .any(|s| head.get(..s.len()).is_some_and(|h| h.eq_ignore_ascii_case(s)))
}

fn decoded(
    path: &Path,
    mut stream: impl Read + 'static,
    encoding: Option<&'static Encoding>,
) -> Result<Box<dyn BufRead>> {
    let first = head(&mut stream, HEAD).map_err(|e| {
        Error::io("read", path, e).remedy("the file may be cut off or damaged: fetch it again")
    })?;
    refuse_foreign(path, &first)?;
    let mark = Encoding::for_bom(&first);
    let encoding = match (encoding, mark) {
        (Some(given), Some((marked, _))) if given != marked && marked != UTF_8 => {
            return Err(Error::usage(format!("the file says that it is {}", marked.name()))
                .at(path.display())
                .remedy(format!("leave --encoding {} out", given.name())));
        }
        (given, marked) => marked.map(|(marked, _)| marked).or(given),
    };
    if encoding.is_none() && looks_like_utf16(&first) {
        return Err(Error::data("this looks like UTF-16 without a byte order mark")
            .at(path.display())
            .remedy("save it as UTF-8, or give --encoding utf-16le (or utf-16be)"));
    }
    if encoding.is_none()
        && first.contains(&0)
        && std::str::from_utf8(&first).is_err_and(|e| e.error_len().is_some())
    {
        return Err(Error::data("this is binary data, and none that is known")
            .at(path.display())
            .remedy("delimited text, JSON or Parquet is read"));
    }
    let begin = mark.map_or(0, |(_, length)| length);
    let mut first = Cursor::new(first);
    first.set_position(begin as u64);
    let stream = first.chain(stream);
    Ok(match encoding {
        None => Box::new(BufReader::with_capacity(BUFFER, stream)),
        Some(encoding) if encoding == UTF_8 => Box::new(BufReader::with_capacity(BUFFER, stream)),
        Some(encoding) => Box::new(BufReader::with_capacity(BUFFER, Decoded::new(stream, encoding))),
    })
}

/// Every other byte of ASCII in UTF-16 is 0.
fn looks_like_utf16(head: &[u8]) -> bool {
    let zeros = |from: usize| head.iter().skip(from).step_by(2).filter(|b| **b == 0).count();
    let half = head.len() / 2;
    half > 1 && [zeros(0), zeros(1)].iter().any(|n| *n * 10 >= half * 9)
}

/// The encoding of a name that the command line gives.
///
/// # Errors
/// An encoding that there is not.
pub(crate) fn encoding(name: &str) -> Result<&'static Encoding> {
    let known = Encoding::for_label(name.trim().as_bytes()).or(match name.to_ascii_lowercase().as_str() {
        "latin-1" | "latin_1" => Some(encoding_rs::WINDOWS_1252),
        "cp936" => Some(encoding_rs::GBK),
        "cp932" => Some(encoding_rs::SHIFT_JIS),
        "utf-16" => Some(UTF_16LE),
        "utf16le" | "utf-16-le" => Some(UTF_16LE),
        "utf16be" | "utf-16-be" => Some(UTF_16BE),
        _ => None,
    });
    known.filter(|e| *e != encoding_rs::REPLACEMENT).ok_or_else(|| {
        Error::usage(format!("no encoding `{name}`")).at("--encoding").remedy(
            "utf-8, latin1 (windows-1252), utf-16le, gbk, gb18030, big5, shift_jis, euc-jp, euc-kr, windows-1251, ..",
        )
    })
}

/// What bytes that are not UTF-8 would say in other encodings.
pub(crate) fn guesses(bytes: &[u8]) -> String {
    let read = |encoding: &'static Encoding| {
        let text = encoding.decode_without_bom_handling_and_without_replacement(bytes)?;
        let around: String = text.trim().chars().take(24).collect();
        Some(format!("{} reads {around:?}", encoding.name().to_lowercase()))
    };
    [encoding_rs::WINDOWS_1252, encoding_rs::GBK, encoding_rs::SHIFT_JIS]
        .into_iter()
        .filter_map(read)
        .collect::<Vec<_>>()
        .join(", ")
}

/// A stream in another encoding as UTF-8.
struct Decoded<R> {
    stream: Chain<Cursor<Vec<u8>>, R>,
    decoder: Decoder,
    raw: Vec<u8>,
    /// The part of `raw` that is not decoded yet.
    left: std::ops::Range<usize>,
    ended: bool,
    /// Nothing more will come: the decoder must not be asked again.
    finished: bool,
    text: Vec<u8>,
    given: usize,
    passed: u64,
    /// Whether the bytes would be UTF-8 too.
    also: AlsoUtf8,
}

impl<R: Read> Decoded<R> {
    fn new(stream: Chain<Cursor<Vec<u8>>, R>, encoding: &'static Encoding) -> Self {
        Self {
            stream,
            decoder: encoding.new_decoder_without_bom_handling(),
            raw: vec![0; 1 << 15],
            left: 0..0,
            ended: false,
            finished: false,
            text: Vec::new(),
            given: 0,
            passed: 0,
            also: AlsoUtf8::new(encoding),
        }
    }

    /// Decodes some more.
    fn advance(&mut self) -> io::Result<()> {
        if self.left.is_empty() && !self.ended {
            let read = self.stream.read(&mut self.raw)?;
            (self.left, self.ended) = (0..read, read == 0);
            self.also.take(&self.raw[..read]);
        }
        self.text.resize(self.decoder.max_utf8_buffer_length(self.left.len()).unwrap_or(1 << 17), 0);
        let source = &self.raw[self.left.clone()];
        let (result, read, written) =
            self.decoder.decode_to_utf8_without_replacement(source, &mut self.text, self.ended);
        self.text.truncate(written);
        (self.given, self.left.start) = (0, self.left.start + read);
        self.passed += read as u64;
        match result {
            DecoderResult::OutputFull => Ok(()),
            DecoderResult::InputEmpty => {
                self.finished = self.ended;
                if self.ended { self.also.refuse(self.decoder.encoding()) } else { Ok(()) }
            }
            DecoderResult::Malformed(length, _) => {
                let byte = self.passed.saturating_sub(u64::from(length)) + 1;
                let what = format!("byte {byte} of the text is not {}", self.decoder.encoding().name());
                Err(io::Error::new(ErrorKind::InvalidData, what))
            }
        }
    }
}

/// Text in another encoding is hardly ever UTF-8 as well, and UTF-8 read in another encoding is garbage that nobody
/// notices: of one command's tables some may be in either.
struct AlsoUtf8 {
    /// Bytes of a character that is not whole yet; none: the text is not UTF-8.
    open: Option<Vec<u8>>,
    /// Characters beyond ASCII so far.
    characters: usize,
    /// So many may be chance.
    chance: usize,
}

impl AlsoUtf8 {
    fn new(encoding: &'static Encoding) -> Self {
        let wide = encoding == UTF_16LE || encoding == UTF_16BE;
        let chance = if encoding.is_single_byte() { 0 } else { 7 };
        Self { open: (!wide).then(Vec::new), characters: 0, chance }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Some(mut open) = self.open.take() else { return };
        let begun = !open.is_empty();
        let joined = begun.then(|| [&open, bytes].concat());
        let bytes = joined.as_deref().unwrap_or(bytes);
        let (valid, rest) = match std::str::from_utf8(bytes) {
            Ok(_) => (bytes, &[][..]),
            Err(e) if e.error_len().is_none() => bytes.split_at(e.valid_up_to()),
            Err(_) => return,
        };
        // Every character has one byte that does not go on with another.
        self.characters += valid.iter().filter(|b| **b >= 0xc0).count();
        open.clear();
        open.extend_from_slice(rest);
        self.open = Some(open);
    }

    fn refuse(&self, encoding: &'static Encoding) -> io::Result<()> {
        if self.characters <= self.chance || self.open.as_ref().is_none_or(|open| !open.is_empty()) {
            return Ok(());
        }
        let (n, name) = (self.characters, encoding.name().to_lowercase());
        let all = if n == 1 { "its 1 character".to_string() } else { format!("all {n} characters") };
        Err(io::Error::new(
            ErrorKind::InvalidData,
            format!(
                "this is UTF-8, not {name}: {all} beyond ASCII are well formed in it; give the encoding of each kind \
                 of table: --encoding items={name}, or events=.., queries=.."
            ),
        ))
    }
}

impl<R: Read> Read for Decoded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.text.len() {
            if self.finished {
                return Ok(0);
            }
            self.advance()?;
        }
        let n = buffer.len().min(self.text.len() - self.given);
        buffer[..n].copy_from_slice(&self.text[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}
