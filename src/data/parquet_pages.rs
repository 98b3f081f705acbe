//! Pages of a Parquet file, checked before the decoder believes what they say of sizes.
//!
//! The decoder allocates for as many values as a page claims, and works through as many: a file of kilobytes could take all
//! memory, or hours. Bounds of what is refused here are those of `docs/security.md`.

use super::parquet_file::ParquetFile;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::Length;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescriptor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows that are decoded at once.
pub(super) const BATCH_ROWS: usize = 1024;
/// What a column may hold, beside [`PER_BYTE`]: values, nulls among them, and bytes of its unpacked pages.
const VALUES: u64 = 1 << 22;
const BYTES: u64 = 1 << 28;
/// Values and unpacked bytes of a column for every byte of the file. All columns but one may be constants; of a log, none of
/// the others comes near.
const PER_BYTE: u64 = 1024;
/// Longest value of a type of fixed length: embeddings are kilobytes.
const FIXED: i32 = 1 << 16;
/// Most that values with shared beginnings, which are written out, may become in a batch.
const WRITTEN_OUT: usize = 2 << 30;

fn refused<T>(what: String) -> Result<T> {
    Err(ParquetError::General(what))
}

/// The pages of all row groups.
pub(super) struct Pages {
    pub file: Arc<ParquetFile>,
    pub metadata: Arc<ParquetMetaData>,
}

impl RowGroups for Pages {
    fn num_rows(&self) -> usize {
        self.metadata.row_groups().iter().map(|group| group.num_rows() as usize).sum()
    }

    fn column_chunks(&self, column: usize) -> Result<Box<dyn PageIterator>> {
        let descriptor = self.metadata.file_metadata().schema_descr().column(column);
        let length = descriptor.type_length();
        if descriptor.physical_type() == Type::FIXED_LEN_BYTE_ARRAY && !(1..=FIXED).contains(&length) {
            return refused(format!("column {} has values of {length} bytes", descriptor.path()));
        }
        Ok(Box::new(ColumnPages {
            file: self.file.clone(),
            metadata: self.metadata.clone(),
            column,
            row_group: 0,
            claims: Arc::new(Claims {
                descriptor,
                length: self.file.len(),
                values: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
            }),
        }))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(self.metadata.row_groups().iter())
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

/// The pages of a column, by row group.
struct ColumnPages {
    file: Arc<ParquetFile>,
    metadata: Arc<ParquetMetaData>,
    column: usize,
    row_group: usize,
    claims: Arc<Claims>,
}

impl Iterator for ColumnPages {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        let group = self.metadata.row_groups().get(self.row_group)?;
        self.row_group += 1;
        let rows = group.num_rows() as usize;
        let pages = SerializedPageReader::new(self.file.clone(), group.column(self.column), rows, None);
        let claims = self.claims.clone();
        Some(pages.map(|pages| Box::new(CheckedPages { pages, claims }) as _))
    }
}

impl PageIterator for ColumnPages {}

/// The pages of a column in a row group.
struct CheckedPages {
    pages: SerializedPageReader<ParquetFile>,
    claims: Arc<Claims>,
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.iter().try_for_each(|page| self.claims.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

/// What a column has claimed so far, of all its row groups: they may all name the same bytes.
struct Claims {
    descriptor: Arc<ColumnDescriptor>,
    /// Bytes of the file.
    length: u64,
    values: AtomicU64,
    bytes: AtomicU64,
}

impl Claims {
    fn check(&self, page: &Page) -> Result<()> {
        let (count, bytes) = (page.num_values(), page.buffer().len());
        self.add(&self.values, u64::from(count), VALUES, "values")?;
        self.add(&self.bytes, bytes as u64, BYTES, "bytes")?;
        let Some(values) = self.values_of(page) else {
            return refused("a page ends within its levels".into());
        };
        if page.is_dictionary_page() && u64::from(count) * self.least_bytes() > bytes as u64 {
            return refused(format!("a dictionary claims {count} values in {bytes} bytes"));
        }
        match page.encoding() {
            Encoding::DELTA_LENGTH_BYTE_ARRAY => drop(lengths(values, count)?),
            Encoding::DELTA_BYTE_ARRAY => {
                lengths(lengths(values, count)?, count)?;
                if bytes.saturating_mul(BATCH_ROWS.min(count as usize)) > WRITTEN_OUT {
                    return refused(format!(
                        "a page of {bytes} bytes in DELTA_BYTE_ARRAY: write smaller pages"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds to what was claimed of a kind.
    fn add(&self, claimed: &AtomicU64, more: u64, free: u64, what: &str) -> Result<()> {
        let all = claimed.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if all <= free.saturating_add(self.length.saturating_mul(PER_BYTE)) {
            return Ok(());
        }
        let (column, length) = (self.descriptor.path(), self.length);
        refused(format!("column {column} claims {all} {what} and more, in a file of {length} bytes"))
    }

    /// Fewest bytes that a value takes in a dictionary: plain encoding.
    fn least_bytes(&self) -> u64 {
        match self.descriptor.physical_type() {
            Type::BOOLEAN => 1,
            Type::INT32 | Type::FLOAT | Type::BYTE_ARRAY => 4, // the length of bytes
            Type::INT64 | Type::DOUBLE => 8,
            Type::INT96 => 12,
            Type::FIXED_LEN_BYTE_ARRAY => self.descriptor.type_length().max(1) as u64,
        }
    }

    /// What follows the levels of a page.
    fn values_of<'p>(&self, page: &'p Page) -> Option<&'p [u8]> {
        let levels = [self.descriptor.max_rep_level(), self.descriptor.max_def_level()];
        match page {
            Page::DictionaryPage { buf, .. } => Some(buf),
            Page::DataPageV2 { buf, rep_levels_byte_len, def_levels_byte_len, .. } => {
                buf.get(*rep_levels_byte_len as usize + *def_levels_byte_len as usize..)
            }
            Page::DataPage { buf, num_values, rep_level_encoding, def_level_encoding, .. } => {
                let mut rest = &buf[..];
                for (most, encoding) in levels.into_iter().zip([rep_level_encoding, def_level_encoding]) {
                    if most > 0 {
                        rest = after_levels(rest, most, *num_values, *encoding)?;
                    }
                }
                Some(rest)
            }
        }
    }
}

/// What follows levels of at most `most` in a page of the first version.
fn after_levels(page: &[u8], most: i16, count: u32, encoding: Encoding) -> Option<&[u8]> {
    if encoding == Encoding::RLE {
        let (length, rest) = page.split_first_chunk::<4>()?;
        return rest.get(u32::from_le_bytes(*length) as usize..);
    }
    // Packed, most significant bit first: as many bits as the greatest level has.
    let bits = u64::from(16 - most.leading_zeros()) * u64::from(count);
    page.get(bits.div_ceil(8) as usize..)
}

/// What follows numbers in DELTA_BINARY_PACKED, here lengths, of which there must be at most `most`.
///
/// <https://parquet.apache.org/docs/file-format/data-pages/encodings/#delta-encoding-delta_binary_packed--5>
fn lengths(bytes: &[u8], most: u32) -> Result<&[u8]> {
    match walk(bytes, u64::from(most)) {
        Some(Ok(rest)) => Ok(rest),
        Some(Err(count)) => refused(format!("a page of {most} values has {count} lengths")),
        None => refused("a page ends within the lengths of its values".into()),
    }
}

/// What follows the numbers; their count if there are too many; none if they do not end.
fn walk(mut bytes: &[u8], most: u64) -> Option<std::result::Result<&[u8], u64>> {
    let [block, parts, count, _first] = [(); 4].map(|()| number(&mut bytes));
    let (block, parts, count) = (block?, parts?, count?);
    if count > most {
        return Some(Err(count));
    }
    let each = block.checked_div(parts).filter(|&each| each > 0)?;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        number(&mut bytes)?;
        let (widths, mut rest) = bytes.split_at_checked(usize::try_from(parts).ok()?)?;
        for &width in widths {
            // Widths behind the last number say nothing.
            let packed = if left > 0 { each.checked_mul(width.into())? / 8 } else { 0 };
            rest = rest.get(usize::try_from(packed).ok()?..)?;
            left = left.saturating_sub(each);
        }
        bytes = rest;
    }
    Some(Ok(bytes))
}

/// Takes a number of seven bits a byte, least significant first, off the front.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for at in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
