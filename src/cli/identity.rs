//! What stands for an item before anything is trained: the rows of its tokens, or codes from what the base model makes of its text.

use super::ranks;
use crate::backend::Backend;
use crate::config::Config;
use crate::data::{Dataset, ItemIdentity, PromptSide, SemanticIds, Vocabulary, residual_kmeans};
use crate::error::Result;
use crate::model::{Inference, LoadOptions, Model, Packed, passes};
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// New item rows start as the mean of their text's token rows.
pub fn start_rows(model: &mut Model, vocabulary: &Vocabulary, data: &Dataset, old: usize) -> Result<()> {
    let tokens = |item: u32| match data.items.text(item) {
        Some(text) => {
            let mut tokens = vocabulary.plain(&format!(" {text}"))?;
            tokens.retain(|token| (*token as usize) < old);
            Ok(tokens)
        }
        None => Ok(Vec::new()),
    };
    let texts: Vec<Vec<u32>> =
        (0..data.items.len() as u32).into_par_iter().map(tokens).collect::<Result<_>>()?;
    let mut rows = Vec::new();
    let mut done = std::collections::HashSet::new();
    for (item, text) in (0..).zip(&texts) {
        for token in vocabulary.item(item).iter().filter(|t| **t as usize >= vocabulary.base_size()) {
            if done.insert(*token) {
                rows.push((*token, text.clone()));
            }
        }
    }
    if rows.is_empty() { Ok(()) } else { model.initialise_rows(&rows, old) }
}

/// Semantic ids from the base model's mean final hidden state of every item's text.
pub fn semantic_ids(
    config: &Config,
    base: &Path,
    data: &Dataset,
    prompt_side: PromptSide,
    backend: &Arc<dyn Backend>,
) -> Result<SemanticIds> {
    let model = Model::load(base, Arc::clone(backend), &LoadOptions::default())?;
    let plain = crate::data::DataSettings { item_identity: ItemIdentity::Text, ..config.data.clone() };
    let vocabulary = Vocabulary::new(base, &data.items, &plain, prompt_side, None)?;
    let dim = model.architecture.hidden;
    let items: Vec<Vec<u32>> =
        (0..data.items.len() as u32).map(|item| vocabulary.item(item).to_vec()).collect();
    let groups = passes(&items);
    let embed = |number: usize| -> Result<Vec<f32>> {
        let group = groups[number];
        let mut embeddings = Vec::with_capacity(group.len() * dim);
        let (encoder, decoder) = match prompt_side {
            PromptSide::Decoder => (None, Packed::new(&[group.to_vec()])),
            PromptSide::Encoder { decoder_start } => {
                (Some(Packed::new(&[group.to_vec()])), Packed::new(&[vec![[decoder_start]; group.len()]]))
            }
        };
        let (rows, offsets) = ((0..decoder.rows() as u32).collect(), decoder.offsets.clone());
        let hidden = model.hidden(&Inference { encoder, decoder, visible: None, rows })?;
        let values = model.backend.download(hidden.mat())?;
        for of_item in offsets.windows(2) {
            let rows = &values[of_item[0] as usize * dim..of_item[1] as usize * dim];
            let count = (of_item[1] - of_item[0]) as f32;
            embeddings.extend((0..dim).map(|j| rows.iter().skip(j).step_by(dim).sum::<f32>() / count));
        }
        Ok(embeddings)
    };
    // Through bits: a number that is not finite is refused below.
    let bits = |number| Ok(embed(number)?.into_iter().map(f32::to_bits).collect::<Vec<u32>>());
    let embeddings = ranks::world().in_turns(groups.len(), bits)?;
    let embeddings: Vec<f32> = embeddings.into_iter().flatten().map(f32::from_bits).collect();
    let s = &config.data.semantic;
    residual_kmeans(&embeddings, dim, s.levels, s.codes, s.iterations, config.seed)
}
