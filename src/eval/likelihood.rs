//! Exact conditional log-likelihoods along a trie, in bounded memory.
//!
//! A pass holds prompts and, behind each, nodes of its trie; a node sees the prompt and its ancestors, so that
//! what candidates share is computed once. A trie that does not fit a pass is cut into runs of its depth-first
//! order, each with the ancestors of its first node. Only inner nodes become rows: a leaf's token is
//! predicted, nothing is predicted from it. Whatever is computed, the longest sequence of a trie decides how rows rotate
//! where that depends on a text's length.

use super::trie::Trie;
use crate::backend::{CrossEntropy, DType, Gather, Mat, Tensor};
use crate::data::PromptSide;
use crate::error::{Error, Result};
use crate::model::{Inference, Model, Packed, Visible};
use rayon::prelude::*;
use std::collections::HashMap;

/// A node with so many children gets their logits in one product; one with fewer is repeated for each child,
/// so that many small nodes share a launch.
const WIDE: usize = 16;
/// Most logits of one product over a wide node's children.
const LOGITS: usize = 1 << 24;

/// A prompt and what may follow it.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The decoder's rows of a decoder-only model, the encoder's otherwise. Not empty.
    pub prompt: &'a [u32],
    /// Its continuations.
    pub trie: &'a Trie,
}

/// Computes likelihoods with a model.
pub struct Scorer<'a> {
    model: &'a Model,
    prompt_side: PromptSide,
    batch_tokens: usize,
}

/// Part of a request that is computed in one pass.
struct Piece {
    request: usize,
    /// Nodes that become rows, in depth-first order; ancestors of each are among them.
    rows: Vec<u32>,
    /// Nodes (of `rows`, or the root) whose children are predicted.
    wanted: Vec<u32>,
}

/// A node from whose hidden state (row `row`) its children are predicted.
struct Parent {
    row: usize,
    request: usize,
    node: u32,
}

impl<'a> Scorer<'a> {
    /// A scorer whose passes hold about `batch_tokens` rows (more only for a prompt that is longer).
    pub fn new(model: &'a Model, prompt_side: PromptSide, batch_tokens: usize) -> Self {
        Self { model, prompt_side, batch_tokens: batch_tokens.max(1) }
    }

    /// Log-likelihood of every sequence of every request's trie, in nats: the sum over its tokens of the
    /// log-softmax over the full vocabulary.
    ///
    /// # Errors
    /// Tokens that the model does not have, scores that are not finite, the device.
    pub fn scores(&self, requests: &[Request]) -> Result<Vec<Vec<f32>>> {
        let nodes: Vec<&[u32]> = requests.iter().map(|request| request.trie.inner()).collect();
        let mut edges: Vec<Vec<f32>> = requests.iter().map(|r| vec![0.0; r.trie.len()]).collect();
        self.edges(requests, &nodes, &mut edges)?;
        let scores = requests.par_iter().zip(edges).map(|(request, edges)| {
            let mut totals: Vec<f64> = edges.into_iter().map(f64::from).collect();
            for node in 1..totals.len() {
                totals[node] += totals[request.trie.parent(node as u32) as usize];
            }
            let score = |i| totals[request.trie.end_of(i) as usize] as f32;
            let list: Vec<f32> = (0..request.trie.sequences()).map(score).collect();
            match list.iter().all(|s| s.is_finite()) {
                true => Ok(list),
                false => Err(Error::numeric("the model's likelihoods are not finite")
                    .remedy("the weights have diverged: lower train.lr, or go back to an older checkpoint")),
            }
        });
        scores.collect()
    }

    /// Log-probabilities of the children of `nodes`, as (child, log-probability).
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    pub fn expand(&self, request: &Request, nodes: &[u32]) -> Result<Vec<(u32, f32)>> {
        let mut wanted = nodes.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let mut edges = [vec![0.0; request.trie.len()]];
        self.edges(&[*request], &[&wanted], &mut edges)?;
        let children = wanted.iter().flat_map(|n| request.trie.children(*n));
        Ok(children.map(|c| (c, edges[0][c as usize])).collect())
    }

    /// Pieces that predict the children of `nodes` (ascending), each with about as many rows as a pass has room for.
    fn pieces(&self, number: usize, request: &Request, nodes: &[u32]) -> Vec<Piece> {
        let room = self.batch_tokens.saturating_sub(self.rows_of(request));
        let room = room.max(self.batch_tokens / 4).max(1);
        let empty = || Piece { request: number, rows: Vec::new(), wanted: Vec::new() };
        let (mut pieces, mut piece) = (Vec::new(), empty());
        for node in nodes {
            let path = request.trie.path(*node);
            // In depth-first order ancestors that are not there yet come behind all rows that are.
            let known = |piece: &Piece| path.partition_point(|n| piece.rows.binary_search(n).is_ok());
            let mut from = known(&piece);
            if !piece.wanted.is_empty() && piece.rows.len() + path.len() - from > room {
                pieces.push(std::mem::replace(&mut piece, empty()));
                from = 0;
            }
            piece.rows.extend_from_slice(&path[from..]);
            piece.wanted.push(*node);
        }
        if !piece.wanted.is_empty() {
            pieces.push(piece);
        }
        pieces
    }

    /// Rows of a request's prompt, encoder and decoder together.
    fn rows_of(&self, request: &Request) -> usize {
        request.prompt.len() + usize::from(self.prompt_side != PromptSide::Decoder)
    }

    /// Writes log-probabilities, given their path, of the children of some nodes (ascending) of every request.
    pub(super) fn edges(
        &self,
        requests: &[Request],
        nodes: &[impl AsRef<[u32]>],
        edges: &mut [Vec<f32>],
    ) -> Result<()> {
        requests.iter().try_for_each(|r| self.check(r))?;
        let of_request =
            |(number, nodes): (usize, &_)| self.pieces(number, &requests[number], AsRef::as_ref(nodes));
        let pieces: Vec<Piece> = nodes.iter().enumerate().flat_map(of_request).collect();
        let size = |piece: &Piece| self.rows_of(&requests[piece.request]) + piece.rows.len();
        let (mut start, mut used) = (0, 0);
        for end in 0..pieces.len() {
            if end > start && used + size(&pieces[end]) > self.batch_tokens {
                self.pass(requests, &pieces[start..end], edges)?;
                (start, used) = (end, 0);
            }
            used += size(&pieces[end]);
        }
        if start < pieces.len() {
            self.pass(requests, &pieces[start..], edges)?;
        }
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<()> {
        let rows = self.model.architecture.vocabulary as u32;
        match request.prompt.iter().copied().chain(request.trie.largest_token()).find(|t| *t >= rows) {
            Some(token) => {
                Err(Error::model(format!("token {token}, but the model has {rows} embedding rows"))
                    .remedy("evaluate with the model that was tuned on this catalogue"))
            }
            None if request.prompt.is_empty() => Err(Error::data("an empty prompt predicts nothing")),
            None => Ok(()),
        }
    }

    /// One forward pass, and the predictions from its hidden states.
    fn pass(&self, requests: &[Request], pieces: &[Piece], edges: &mut [Vec<f32>]) -> Result<()> {
        let (mut decoder, mut prompts) = (Packed { offsets: vec![0], ..Packed::default() }, Vec::new());
        let mut visible = Visible { offsets: vec![0], keys: Vec::new() };
        let (mut wanted, mut parents) = (Vec::new(), Vec::new());
        for piece in pieces {
            let Request { prompt, trie } = requests[piece.request];
            let stem = match self.prompt_side {
                PromptSide::Decoder => prompt,
                PromptSide::Encoder { ref decoder_start } => {
                    prompts.push(prompt);
                    std::slice::from_ref(decoder_start)
                }
            };
            let first = decoder.rows() as u32;
            let behind = first + stem.len() as u32;
            let row_of = |node: u32| match piece.rows.binary_search(&node) {
                Ok(at) => behind + at as u32,
                Err(_) => behind - 1, // the root: the last row of the prompt
            };
            for (i, token) in stem.iter().enumerate() {
                decoder.tokens.push(*token);
                decoder.positions.push(i as u32);
                visible.keys.extend(first..=first + i as u32);
                visible.offsets.push(visible.keys.len() as u32);
            }
            for node in &piece.rows {
                decoder.tokens.push(trie.token(*node));
                decoder.positions.push(stem.len() as u32 - 1 + trie.depth(*node));
                visible.keys.extend(first..behind);
                visible.keys.extend(trie.path(*node).into_iter().map(row_of));
                visible.offsets.push(visible.keys.len() as u32);
            }
            decoder.offsets.push(decoder.rows() as u32);
            decoder.lengths.push(stem.len() as u32 + trie.height());
            for node in &piece.wanted {
                parents.push(Parent { row: wanted.len(), request: piece.request, node: *node });
                wanted.push(row_of(*node));
            }
        }
        decoder.segments.push(0..decoder.rows());
        let plain = pieces.iter().all(|p| p.rows.is_empty());
        let encoder = (!prompts.is_empty()).then(|| Packed::new(&[prompts]));
        let visible = (!plain).then_some(visible);
        let hidden = self.model.hidden(&Inference { encoder, decoder, visible, rows: wanted })?;
        self.predict(requests, &hidden, parents, edges)
    }

    fn predict(
        &self,
        requests: &[Request],
        hidden: &Tensor,
        parents: Vec<Parent>,
        edges: &mut [Vec<f32>],
    ) -> Result<()> {
        let width = |p: &Parent| requests[p.request].trie.children(p.node).take(WIDE).count();
        let (mut wide, narrow): (Vec<Parent>, Vec<Parent>) =
            parents.into_iter().partition(|p| width(p) == WIDE);
        self.predict_each(requests, hidden, &narrow, edges)?;
        // Requests with the same trie (the whole catalogue) share the product over a node's children.
        let mut numbers = HashMap::new();
        let tries: Vec<usize> = requests
            .iter()
            .enumerate()
            .map(|(i, r)| *numbers.entry(std::ptr::from_ref(r.trie)).or_insert(i))
            .collect();
        let key = |p: &Parent| (tries[p.request], p.node);
        wide.sort_by_key(key);
        wide.chunk_by(|a, b| key(a) == key(b))
            .try_for_each(|group| self.predict_all(requests, hidden, group, edges))
    }

    /// Children of nodes that have few: a row a child, and its negative log-likelihood.
    fn predict_each(
        &self,
        requests: &[Request],
        hidden: &Tensor,
        parents: &[Parent],
        edges: &mut [Vec<f32>],
    ) -> Result<()> {
        let all: Vec<(usize, usize, u32)> = parents
            .iter()
            .flat_map(|p| requests[p.request].trie.children(p.node).map(|c| (p.row, p.request, c)))
            .collect();
        for part in all.chunks(self.batch_tokens.max(64)) {
            let rows: Vec<usize> = part.iter().map(|(row, ..)| *row).collect();
            let targets: Vec<u32> =
                part.iter().map(|(_, r, child)| requests[*r].trie.token(*child)).collect();
            let nll = self.nll(&self.gather(hidden, &rows)?, &targets)?;
            for ((_, request, child), nll) in part.iter().zip(nll) {
                edges[*request][*child as usize] = -nll;
            }
        }
        Ok(())
    }

    /// The children of one node with many, for all requests that share its trie: the log-probability of the
    /// first child, and how far the others' logits are from its.
    fn predict_all(
        &self,
        requests: &[Request],
        hidden: &Tensor,
        parents: &[Parent],
        edges: &mut [Vec<f32>],
    ) -> Result<()> {
        let (trie, node) = (requests[parents[0].request].trie, parents[0].node);
        let children: Vec<u32> = trie.children(node).collect();
        let tokens: Vec<u32> = children.iter().map(|c| trie.token(*c)).collect();
        let (be, model) = (&self.model.backend, self.model);
        let head = model.parameter(model.head());
        let chosen = self.head_rows(head, &tokens)?;
        let chosen = match &chosen {
            Some(gathered) => gathered.mat(),
            None => head.row_range(tokens[0] as usize..tokens[0] as usize + tokens.len()),
        };
        for group in parents.chunks((LOGITS / tokens.len()).max(1)) {
            let rows: Vec<usize> = group.iter().map(|p| p.row).collect();
            let x = self.gather(hidden, &rows)?;
            let first = self.nll(&x, &vec![tokens[0]; rows.len()])?;
            let logits = be.download(model.logits_of(x.mat(), chosen)?.mat())?;
            for ((parent, nll), row) in group.iter().zip(first).zip(logits.chunks_exact(tokens.len())) {
                for (child, logit) in children.iter().zip(row) {
                    edges[parent.request][*child as usize] = (logit - row[0]) - nll;
                }
            }
        }
        Ok(())
    }

    /// The head's rows of `tokens` (ascending); `None` where they follow each other and need no copy.
    fn head_rows(&self, head: Mat, tokens: &[u32]) -> Result<Option<Tensor>> {
        if (tokens[tokens.len() - 1] - tokens[0]) as usize + 1 == tokens.len() {
            return Ok(None);
        }
        let be = &self.model.backend;
        let mut rows = be.alloc(tokens.len(), head.cols, head.dtype)?;
        be.run(Gather { from: head, rows: &be.indices(tokens)?, scale: 1.0, to: rows.mat_mut() })?;
        Ok(Some(rows))
    }

    fn gather(&self, hidden: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let be = &self.model.backend;
        let rows: Vec<u32> = rows.iter().map(|r| *r as u32).collect();
        let mut x = be.alloc(rows.len(), hidden.cols(), hidden.dtype())?;
        be.run(Gather { from: hidden.mat(), rows: &be.indices(&rows)?, scale: 1.0, to: x.mat_mut() })?;
        Ok(x)
    }

    /// Negative log-likelihood of `targets[i]` after hidden state i, over the full vocabulary.
    fn nll(&self, x: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let (be, model) = (&self.model.backend, self.model);
        let count = targets.len();
        let weights = be.tensor(&vec![1.0; count], count, 1, DType::F32)?;
        let mut nll = be.alloc(count, 1, DType::F32)?;
        be.run(CrossEntropy {
            x: x.mat(),
            head: model.parameter(model.head()),
            logit_scale: model.architecture.logit_scale,
            softcap: model.architecture.logit_softcap,
            targets: &be.indices(targets)?,
            weights: weights.mat(),
            nll: nll.mat_mut(),
            dx: None,
            head_gradient: None,
        })?;
        be.download(nll.mat())
    }
}
