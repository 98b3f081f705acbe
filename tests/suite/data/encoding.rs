//! Records to examples: targets, truncation, plain text.

use super::{Bench, cue, record};
use gems_engine::data::*;
use proptest::prelude::*;

#[test]
fn golden_targets_follow_prompts_and_expand() {
    for t5 in [false, true] {
        let bench = Bench::new(t5, cue());
        let encoder = bench.encoder();
        let record = record(1, &[3, 4], Some("red watch"), &[7, 9]);
        assert_eq!(Encoder::examples(&record), 2);
        let prompt = encoder.prompt(&record).unwrap();
        for (nth, item) in [7, 9].into_iter().enumerate() {
            let example = encoder.encode(&record, nth).unwrap();
            assert_eq!(example.tokens[example.labels_from..], *bench.vocabulary.item(item));
            match &example.encoder {
                Some(input) => assert_eq!((input, &example.tokens[..1]), (&prompt, &[0][..])),
                None => assert_eq!(example.tokens[..example.labels_from], prompt),
            }
        }
        assert_eq!(bench.items_of(&prompt), [3, 4]);
    }
}

#[test]
fn golden_plain_text_is_learned_whole() {
    let text = Record { text: Some("warm steel watch".into()), ..Record::default() };
    let bench = Bench::new(false, cue());
    let example = bench.encoder().encode(&text, 0).unwrap();
    assert_eq!(example.tokens, bench.vocabulary.encode("warm steel watch").unwrap());
    assert_eq!(example.labels(), example.tokens.len() - 1);
    let bench = Bench::new(true, cue());
    let example = bench.encoder().encode(&text, 0).unwrap();
    let joined: Vec<u32> = example.encoder.iter().flatten().chain(&example.tokens[1..]).copied().collect();
    assert_eq!(joined, bench.vocabulary.encode("warm steel watch").unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn golden_truncation_keeps_the_query_and_the_newest_items(
        t5 in any::<bool>(),
        history in prop::collection::vec(0u32..40, 0..30),
        words in prop::collection::vec("[a-z]{1,6}", 1..30),
        max_length in 12usize..60,
        history_limit in 0usize..12,
    ) {
        let settings = DataSettings { max_length, history_limit, ..cue() };
        let bench = Bench::new(t5, settings);
        let query = words.join(" ");
        let record = record(1, &history, Some(&query), &[5]);
        let example = bench.encoder().encode(&record, 0).unwrap();
        let prompt = bench.encoder().prompt(&record).unwrap();
        let whole = example.encoder.as_ref().unwrap_or(&example.tokens);
        prop_assert!(whole.len() <= max_length);
        let kept = bench.items_of(&prompt);
        prop_assert!(history.ends_with(&kept), "{kept:?} is not the end of {history:?}");
        prop_assert_eq!(kept.len() + example.dropped_items as usize, history.len());
        let room = max_length - if t5 { 0 } else { 1 };
        // One more item would not have fit, or was over the limit.
        if example.dropped_items > 0 && !example.cut_query {
            let more = kept.len() + 1;
            let longer = DataSettings { max_length: 4096, history_limit: more, ..cue() };
            let bigger = Bench::new(t5, longer);
            let tokens = bigger.encoder().prompt(&record).unwrap();
            prop_assert!(tokens.len() > room || (history_limit > 0 && more > history_limit));
        }
        let text = bench.vocabulary.decode(&prompt, true).unwrap();
        if example.cut_query {
            prop_assert!(kept.is_empty(), "items are kept though the query is cut");
        } else {
            prop_assert!(text.replace(' ', "").contains(&query.replace(' ', "")), "{text:?} lost {query:?}");
        }
    }
}

#[test]
fn golden_a_prompt_that_never_fits_is_an_error() {
    let mut settings = DataSettings { max_length: 8, ..DataSettings::default() };
    settings.templates.insert("rec".into(), "{{ history }} one two three four five six seven eight".into());
    let bench = Bench::new(false, settings);
    let error = bench.encoder().encode(&record(0, &[1, 2], None, &[3]), 0).unwrap_err().to_string();
    assert!(error.contains("data.max_length") && error.contains("does not fit"), "{error}");
}
