//! Parquet: what other writers make, and what files claim that is not so.

use super::{cue, directory, write};
use arrow_array::builder::{Int64Builder, ListBuilder};
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use gems_engine::data::*;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaDataReader, ParquetMetaDataWriter};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::{SerializedFileWriter, SerializedPageWriter, TrackedWrite};
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

#[test]
fn parquet_and_jsonl_give_the_same_records() {
    let lists = |rows: &[&[i64]]| -> ArrayRef {
        let mut builder = ListBuilder::new(Int64Builder::new());
        rows.iter().for_each(|row| builder.append_value(row.iter().map(|x| Some(*x))));
        Arc::new(builder.finish())
    };
    let save = |path: PathBuf, columns: Vec<(&str, ArrayRef)>| {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = std::fs::File::create(path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    };
    let a = directory(
        4,
        &[
            json!({"task": "rec", "user": "u", "history": [0, 1], "target": [2], "timestamp": 5}),
            json!({"task": "search", "history": [], "query": "tea", "target": [3, 1]}),
        ],
    );
    let b = tempfile::tempdir().unwrap();
    save(
        b.path().join("items.parquet"),
        vec![
            ("item", Arc::new(Int64Array::from(vec![0, 1, 2, 3]))),
            ("text", Arc::new(StringArray::from(vec!["title 0", "title 1", "title 2", "title 3"]))),
        ],
    );
    let train: Vec<(&str, ArrayRef)> = vec![
        ("task", Arc::new(StringArray::from(vec!["rec", "search"]))),
        ("user", Arc::new(StringArray::from(vec![Some("u"), None]))),
        ("history", lists(&[&[0, 1], &[]])),
        ("query", Arc::new(StringArray::from(vec![None, Some("tea")]))),
        ("target", lists(&[&[2], &[3, 1]])),
        ("timestamp", Arc::new(Float64Array::from(vec![Some(5.0), None]))),
    ];
    save(b.path().join("train.parquet"), train);
    let (a, c) = (Dataset::load(a.path(), &cue()).unwrap(), Dataset::load(b.path(), &cue()).unwrap());
    assert_eq!(a.train, c.train);
    assert_eq!(a.items.text(3), c.items.text(3));
    // A timestamp that is not a number is an error with its row, as in JSONL.
    let train: Vec<(&str, ArrayRef)> = vec![
        ("task", Arc::new(StringArray::from(vec!["rec", "rec"]))),
        ("history", lists(&[&[0], &[1]])),
        ("target", lists(&[&[2], &[3]])),
        ("timestamp", Arc::new(Float64Array::from(vec![1.0, f64::NAN]))),
    ];
    save(b.path().join("train.parquet"), train);
    let message = Dataset::load(b.path(), &cue()).unwrap_err().to_string();
    assert!(message.contains("train.parquet row 2: timestamp: NaN instead of"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_parquet_is_an_error_and_never_a_panic(at in 0usize..1000, byte in any::<u8>(), cut in 0usize..1000) {
        let item: ArrayRef = Arc::new(Int64Array::from_iter_values(0..50));
        let text: ArrayRef = Arc::new(StringArray::from_iter_values((0..50).map(|i| format!("t{}", i % 7))));
        let batch = RecordBatch::try_from_iter(vec![("item", item), ("text", text)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let n = bytes.len();
        bytes[at * n / 1000] ^= byte;
        bytes.truncate(n - (cut * n / 1000) / 2);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("items.parquet"), bytes).unwrap();
        write(dir.path(), "train.jsonl", &[json!({"task": "rec", "history": [1], "target": [2]})]);
        let _ = Dataset::load(dir.path(), &cue());
    }
}

/// A page's header that says that 2^31 - 1 numbers follow, which the decoder has no use for: they would be passed over one by
/// one, for minutes, though the file ends.
#[test]
fn a_parquet_page_that_claims_more_than_there_is_is_refused_at_once() {
    let item: ArrayRef = Arc::new(Int64Array::from_iter_values(0..50));
    let batch = RecordBatch::try_from_iter(vec![("item", item)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    // Thrift's compact protocol, behind the magic number: field 1 is the i32 0, field 16 a list of so many doubles.
    bytes[4..13].copy_from_slice(&[0x15, 0, 0xf9, 0xf7, 0xff, 0xff, 0xff, 0xff, 7]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("items.parquet"), bytes).unwrap();
    write(dir.path(), "train.jsonl", &[json!({"task": "rec", "history": [1], "target": [2]})]);
    let error = Dataset::load(dir.path(), &cue()).err().unwrap().to_string();
    assert!(error.contains("items.parquet") && error.contains("not a readable Parquet file"), "{error}");
}

/// The texts of items, and nothing for rows without one, as a writer with these properties leaves them.
fn texts(rows: &[Option<String>], properties: WriterProperties) -> Vec<Option<String>> {
    let item: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows.len() as i64));
    let text: ArrayRef = Arc::new(StringArray::from_iter(rows));
    let batch = RecordBatch::try_from_iter(vec![("item", item), ("text", text)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let data = load(&bytes).unwrap();
    (0..rows.len() as u32).map(|item| data.items.text(item).map(str::to_string)).collect()
}

fn load(items: &[u8]) -> gems_engine::error::Result<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("items.parquet"), items).unwrap();
    write(dir.path(), "train.jsonl", &[json!({"task": "rec", "history": [1], "target": [0]})]);
    Dataset::load(dir.path(), &cue())
}

const ENCODINGS: [Option<Encoding>; 4] = [
    None, // a dictionary, and plain when that is full
    Some(Encoding::PLAIN),
    Some(Encoding::DELTA_LENGTH_BYTE_ARRAY),
    Some(Encoding::DELTA_BYTE_ARRAY),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn text_is_the_same_in_every_encoding(
        some in prop::collection::vec(prop::option::of("[a-zäß日]{1,30}"), 1..40),
        (times, encoding, second, packed, page) in (1usize..80, 0usize..4, any::<bool>(), any::<bool>(), 1usize..3000),
    ) {
        // More rows than are decoded at once, in several pages.
        let rows: Vec<_> = some.iter().cycle().take(some.len() * times + 1).cloned().collect();
        let mut properties = WriterProperties::builder()
            .set_writer_version(if second { WriterVersion::PARQUET_2_0 } else { WriterVersion::PARQUET_1_0 })
            .set_compression(if packed { Compression::ZSTD(ZstdLevel::default()) } else { Compression::UNCOMPRESSED })
            .set_dictionary_page_size_limit(200)
            .set_data_page_row_count_limit(page)
            .set_write_batch_size(page.min(64));
        if let Some(encoding) = ENCODINGS[encoding] {
            properties = properties.set_dictionary_enabled(false).set_encoding(encoding);
        }
        // Of the numbers of items, which are no text, the default.
        let properties = properties.set_column_encoding("item".into(), Encoding::PLAIN).build();
        prop_assert_eq!(texts(&rows, properties), rows);
    }
}

/// A file with two items, whose column of texts has these pages.
fn with_pages(text: &str, pages: Vec<Page>) -> Vec<u8> {
    let schema =
        Arc::new(parse_message_type(&format!("message m {{ required int64 item; {text} }}")).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let columns = writer.schema_descr().columns().to_vec();
    let mut group = writer.next_row_group().unwrap();
    let items = page(Encoding::PLAIN, 2, &[0i64.to_le_bytes(), 1i64.to_le_bytes()].concat());
    for (column, pages) in columns.into_iter().zip([vec![items], pages]) {
        let dictionary = pages[0].is_dictionary_page();
        let mut chunk = TrackedWrite::new(Vec::new());
        let starts: Vec<i64> = pages
            .into_iter()
            .map(|page| {
                let (start, size) = (chunk.bytes_written() as i64, page.buffer().len());
                SerializedPageWriter::new(&mut chunk).write_page(CompressedPage::new(page, size)).unwrap();
                start
            })
            .collect();
        let chunk = chunk.into_inner().unwrap();
        let metadata = ColumnChunkMetaData::builder(column)
            .set_data_page_offset(starts[usize::from(dictionary)])
            .set_dictionary_page_offset(dictionary.then_some(0))
            .set_total_compressed_size(chunk.len() as i64)
            .set_total_uncompressed_size(chunk.len() as i64)
            .set_num_values(2)
            .build()
            .unwrap();
        let closed = ColumnCloseResult {
            bytes_written: chunk.len() as u64,
            rows_written: 2,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        group.append_column(&bytes::Bytes::from(chunk), closed).unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

/// The file's row group so many times: all name the same bytes.
fn repeated(file: &[u8], groups: usize) -> Vec<u8> {
    let metadata =
        ParquetMetaDataReader::new().parse_and_finish(&bytes::Bytes::copy_from_slice(file)).unwrap();
    let (rest, _) = file.split_last_chunk::<4>().unwrap();
    let (rest, length) = rest.split_last_chunk::<4>().unwrap();
    let mut bytes = rest[..rest.len() - u32::from_le_bytes(*length) as usize].to_vec();
    let group = metadata.row_group(0).clone();
    let metadata = metadata.into_builder().set_row_groups(vec![group; groups]).build();
    ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().unwrap();
    bytes
}

fn page(encoding: Encoding, num_values: u32, values: &[u8]) -> Page {
    Page::DataPage {
        buf: values.to_vec().into(),
        num_values,
        encoding,
        def_level_encoding: Encoding::RLE,
        rep_level_encoding: Encoding::RLE,
        statistics: None,
    }
}

fn dictionary(num_values: u32, values: &[u8]) -> Page {
    Page::DictionaryPage {
        buf: values.to_vec().into(),
        num_values,
        encoding: Encoding::PLAIN,
        is_sorted: false,
    }
}

/// DELTA_BINARY_PACKED: a block of 128 numbers in four parts, so many numbers, the first, and what follows.
fn packed(count: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80, 1, 4];
    let mut left = count;
    while left >= 0x80 {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    [&bytes, rest].concat()
}

/// Two texts of two bytes: lengths 2 and 2 (zigzag of the first, the least step, four widths), then the bytes.
const LENGTHS: [u8; 6] = [4, 0, 0, 0, 0, 0];
/// Lengths 0 and 0.
const NOTHING: [u8; 6] = [0; 6];

const OPTIONAL: &str = "optional binary text (UTF8);";
const LIST: &str = "optional group text (LIST) { repeated group list { optional binary element (UTF8); } }";
const TEXT: &str = "required binary text (UTF8);";

#[test]
fn pages_made_by_hand_are_read() {
    let delta = Encoding::DELTA_LENGTH_BYTE_ARRAY;
    let shared = Encoding::DELTA_BYTE_ARRAY;
    let plain = [&2u32.to_le_bytes()[..], b"ab", &2u32.to_le_bytes()[..], b"cd"].concat();
    let cases = [
        vec![page(Encoding::PLAIN, 2, &plain)],
        vec![dictionary(2, &plain), page(Encoding::RLE_DICTIONARY, 2, &[1, 3, 0b10])],
        vec![page(delta, 2, &[packed(2, &LENGTHS), b"abcd".to_vec()].concat())],
        vec![page(shared, 2, &[packed(2, &NOTHING), packed(2, &LENGTHS), b"abcd".to_vec()].concat())],
    ];
    for pages in cases {
        let what = format!("{pages:?}");
        let data = load(&with_pages(TEXT, pages)).unwrap();
        assert_eq!([data.items.text(0), data.items.text(1)], [Some("ab"), Some("cd")], "{what}");
    }
}

/// A million nulls of a list, its first or further ones: levels of repetition (0, then a run of 1) and of definition (a run of 2).
fn elements(first: bool) -> Page {
    let repeated: &[u8] = if first { &[2, 0, 0xfe, 0xff, 0x7f, 1] } else { &[0x80, 0x80, 0x80, 1, 1] };
    let length = |part: &[u8]| (part.len() as u32).to_le_bytes();
    let defined: &[u8] = &[0x80, 0x80, 0x80, 1, 2];
    page(Encoding::PLAIN, 1 << 20, &[&length(repeated), repeated, &length(defined), defined].concat())
}

/// What a page claims of sizes is not believed: a decoder that does takes all memory, or passes hours.
#[test]
fn claims_of_pages_are_refused_before_anything_is_allocated() {
    let delta = Encoding::DELTA_LENGTH_BYTE_ARRAY;
    let shared = Encoding::DELTA_BYTE_ARRAY;
    // A run of levels: 2^31 - 1 nulls.
    let nulls = |count: u32| page(Encoding::PLAIN, count, &[6, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xf, 0]);
    let many = i32::MAX as u32;
    let long = vec![b'a'; 3 << 20];
    let cases = [
        (
            "required int64 text;",
            vec![dictionary(3, &[0; 16]), page(Encoding::RLE_DICTIONARY, 2, &[0])],
            "a dictionary claims",
        ),
        (
            TEXT,
            vec![dictionary(1 << 20, &[0; 16]), page(Encoding::RLE_DICTIONARY, 2, &[0])],
            "a dictionary claims",
        ),
        (TEXT, vec![dictionary(many, &[0; 16]), page(Encoding::RLE_DICTIONARY, 2, &[0])], "and more"),
        (OPTIONAL, vec![nulls(many)], "and more"),
        (LIST, (0..8).map(|at| elements(at == 0)).collect(), "and more"),
        (TEXT, vec![page(delta, 2, &packed(1 << 40, &LENGTHS))], "has 1099511627776 lengths"),
        (TEXT, vec![page(delta, 2, &packed(2, &LENGTHS[..3]))], "ends within the lengths"),
        (TEXT, vec![page(shared, 2, &packed(1 << 40, &NOTHING))], "has 1099511627776 lengths"),
        (
            TEXT,
            vec![page(shared, 2, &[packed(2, &NOTHING), packed(1 << 40, &LENGTHS)].concat())],
            "has 1099511627776 lengths",
        ),
        (
            TEXT,
            vec![page(shared, 1024, &[packed(2, &NOTHING), packed(2, &LENGTHS), long].concat())],
            "smaller pages",
        ),
        (OPTIONAL, vec![page(delta, 2, &[9, 0, 0, 0, 1])], "ends within its levels"),
        (
            "required fixed_len_byte_array(2147483647) text;",
            vec![page(Encoding::PLAIN, 2, &[0])],
            "of 2147483647 bytes",
        ),
    ];
    for (text, pages, part) in cases {
        let what = format!("{text}, {:.200}", format!("{pages:?}"));
        let error =
            load(&with_pages(text, pages)).err().unwrap_or_else(|| panic!("{what}: read")).to_string();
        assert!(error.contains("items.parquet") && error.contains(part), "{what}: {error}");
    }
}

/// A file that would be read to its end has to be as large as what it claims, though every page may be counted again.
#[test]
fn row_groups_of_the_same_bytes_count_each() {
    let file = with_pages(LIST, vec![elements(true), elements(true)]);
    let said = |file: &[u8]| load(file).err().map(|error| error.to_string()).unwrap_or_default();
    let (once, often) = (said(&file), said(&repeated(&file, 8)));
    assert!(!once.contains("and more"), "{once}");
    assert!(often.contains("items.parquet") && often.contains("and more"), "{often}");
}

/// The decoder sees that the text of a page is UTF-8, not that of each value.
#[test]
fn a_character_in_two_values_is_an_error() {
    let halves = [packed(2, &[2, 0, 0, 0, 0, 0]), "ü".as_bytes().to_vec()].concat();
    let error =
        load(&with_pages(TEXT, vec![page(Encoding::DELTA_LENGTH_BYTE_ARRAY, 2, &halves)])).err().unwrap();
    assert!(error.to_string().contains("not UTF-8"), "{error}");
}
