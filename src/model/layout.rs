//! How a transformer is put together: stacks of residual blocks over numbered sites and parameters.
//!
//! A stack is a list of blocks `x <- x + after(f(before(x)))`, where before and after are norms or nothing; a decoder
//! layer is two of them, T5's decoder layer three. What a family is, is said here and in [`Architecture`]; the
//! passes follow it.

use super::architecture::{Architecture, Norms, QueryKeyNorms};
use super::rotary::Rotary;
use crate::layers::{Projection, Site};

/// What a dense (not low-rank) parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseKind {
    /// The token embedding table (also the head, where tied).
    Embedding,
    /// An untied head.
    Head,
    /// A norm's weight.
    Norm,
    /// The bias of a site.
    Bias(usize),
    /// T5's relative position bias table.
    RelativeBias,
}

/// A dense parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenseSpec {
    /// Its Hugging Face tensor name.
    pub name: String,
    /// What it is.
    pub kind: DenseKind,
    /// Rows (1 for norms and biases).
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// The attention of a block.
#[derive(Debug, Clone)]
pub struct AttentionBlock {
    /// Sites of q, k and v: three, or one whose outputs are all of them, side by side.
    pub qkv: Vec<usize>,
    /// Site of o.
    pub o: usize,
    /// Norms of q and k (dense parameters).
    pub qk_norm: Option<[usize; 2]>,
    /// Reads keys and values from the encoder.
    pub cross: bool,
    /// Every row sees only rows up to itself.
    pub causal: bool,
    /// And of those the last so many.
    pub window: Option<usize>,
    /// Number of the rotation, or none.
    pub rotary: Option<usize>,
    /// Relative position bias table (dense parameter).
    pub bias: Option<usize>,
}

/// The feed-forward part of a block.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// Sites of the input matrices: one; gate and up; or one whose outputs are both, side by side.
    pub inputs: Vec<usize>,
    /// Site of the output matrix.
    pub down: usize,
}

/// What a block adds to the stream.
#[derive(Debug, Clone)]
pub enum Sublayer {
    /// Attention.
    Attention(AttentionBlock),
    /// Feed-forward.
    FeedForward(FeedForward),
}

/// One residual block: `x <- x + after(sublayer(before(x)))`.
#[derive(Debug, Clone)]
pub struct Block {
    /// Norm in front (dense parameter).
    pub before: Option<usize>,
    /// What stands between the norms.
    pub sublayer: Sublayer,
    /// Norm behind (dense parameter).
    pub after: Option<usize>,
}

impl Block {
    /// What it is, for traces.
    pub fn name(&self) -> &'static str {
        match self.sublayer {
            Sublayer::Attention(_) => "attention",
            Sublayer::FeedForward(_) => "feed-forward",
        }
    }
}

/// Blocks and a final norm.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The blocks, first to last. The last one is a feed-forward block.
    pub blocks: Vec<Block>,
    /// The norm after them (dense parameter).
    pub final_norm: usize,
}

/// All sites and parameters of a model, and the stacks made of them.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Linear layers.
    pub sites: Vec<Site>,
    /// Dense parameters. The embedding table is number 0.
    pub dense: Vec<DenseSpec>,
    /// The encoder, of encoder-decoder models.
    pub encoder: Option<Stack>,
    /// The decoder.
    pub decoder: Option<Stack>,
    /// An untied head (dense parameter).
    pub head: Option<usize>,
    /// Rotations of queries and keys.
    pub rotary: Vec<Rotary>,
    groups: usize,
}

/// The names of an attention's modules in a family's checkpoints.
struct Names {
    attention: String,
    /// Of q, k and v, or of one for all.
    qkv: &'static [&'static str],
    o: &'static str,
}

impl Layout {
    /// The embedding table's number among the dense parameters.
    pub const EMBEDDING: usize = 0;

    /// The layout of an architecture.
    pub fn new(a: &Architecture) -> Self {
        let mut layout = Layout::default();
        if a.family.is_t5() {
            layout.t5(a)
        } else {
            layout.decoder_only(a)
        }
        layout
    }

    /// The decoder's stack.
    pub fn decoder(&self) -> &Stack {
        // Both constructors set it.
        self.decoder.as_ref().unwrap_or_else(|| unreachable!("a layout has a decoder"))
    }

    /// Whether each site reads rows of the encoder: all of its own, and keys and values of cross attention.
    pub fn read_encoder(&self) -> Vec<bool> {
        let mut found = vec![false; self.sites.len()];
        for block in self.encoder.iter().flat_map(|stack| &stack.blocks) {
            match &block.sublayer {
                Sublayer::Attention(a) => a.qkv.iter().chain([&a.o]).for_each(|s| found[*s] = true),
                Sublayer::FeedForward(f) => f.inputs.iter().chain([&f.down]).for_each(|s| found[*s] = true),
            }
        }
        for block in &self.decoder().blocks {
            if let Sublayer::Attention(AttentionBlock { cross: true, qkv, .. }) = &block.sublayer {
                qkv[1..].iter().for_each(|s| found[*s] = true);
            }
        }
        found
    }

    fn dense(&mut self, name: String, kind: DenseKind, rows: usize, cols: usize) -> usize {
        self.dense.push(DenseSpec { name, kind, rows, cols });
        self.dense.len() - 1
    }

    fn site(
        &mut self,
        name: String,
        projection: Projection,
        outputs: usize,
        inputs: usize,
        group: usize,
        bias: bool,
    ) -> usize {
        let site = self.sites.len();
        if bias {
            self.dense(format!("{name}.bias"), DenseKind::Bias(site), 1, outputs);
        }
        self.sites.push(Site { name, projection, outputs, inputs, input_group: group, bias });
        site
    }

    fn norm(&mut self, module: &str, name: &str, width: usize) -> usize {
        self.dense(format!("{module}.{name}.weight"), DenseKind::Norm, 1, width)
    }

    fn group(&mut self) -> usize {
        self.groups += 1;
        self.groups - 1
    }

    fn attention(
        &mut self,
        a: &Architecture,
        n: &Names,
        cross: Option<usize>,
        causal: bool,
    ) -> AttentionBlock {
        let own = self.group();
        let source = cross.unwrap_or(own);
        let (queries, keys) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let name = |part: &str| format!("{}.{part}", n.attention);
        let parts: &[_] = match n.qkv {
            [one] => &[(*one, Projection::Qkv, queries + 2 * keys, own)],
            [q, k, v] => &[
                (*q, Projection::Q, queries, own),
                (*k, Projection::K, keys, source),
                (*v, Projection::V, keys, source),
            ],
            _ => unreachable!("q, k and v are three matrices or one"),
        };
        let of = |(part, projection, outputs, group): &(&str, Projection, usize, usize)| {
            self.site(name(part), *projection, *outputs, a.hidden, *group, a.qkv_bias)
        };
        let qkv = parts.iter().map(of).collect();
        let group = self.group();
        let o = self.site(name(n.o), Projection::O, a.hidden, queries, group, a.o_bias);
        let widths = match a.qk_norm {
            QueryKeyNorms::Absent => None,
            QueryKeyNorms::PerHead => Some([a.head_dim; 2]),
            QueryKeyNorms::Whole => Some([queries, keys]),
        };
        let qk_norm =
            widths.map(|[q, k]| [self.norm(&n.attention, "q_norm", q), self.norm(&n.attention, "k_norm", k)]);
        AttentionBlock {
            qkv,
            o,
            qk_norm,
            cross: cross.is_some(),
            causal,
            window: None,
            rotary: (!self.rotary.is_empty()).then_some(0),
            bias: None,
        }
    }

    /// `inputs`: the names of gate and up, or of one for both.
    fn feed_forward(&mut self, a: &Architecture, module: &str, inputs: &[&str], down: &str) -> FeedForward {
        let (input, inner) = (self.group(), self.group());
        let name = |part: &str| format!("{module}.{part}");
        let projections: &[_] = match a.fused {
            true => &[(Projection::GateUp, 2 * a.intermediate)],
            false => &[(Projection::Gate, a.intermediate), (Projection::Up, a.intermediate)],
        };
        let of = |(part, (projection, outputs)): (&&str, &(Projection, usize))| {
            self.site(name(part), *projection, *outputs, a.hidden, input, a.mlp_bias)
        };
        let inputs = inputs.iter().zip(projections).map(of).collect();
        let down = self.site(name(down), Projection::Down, a.hidden, a.intermediate, inner, a.mlp_bias);
        FeedForward { inputs, down }
    }

    fn decoder_only(&mut self, a: &Architecture) {
        self.dense("model.embed_tokens.weight".into(), DenseKind::Embedding, a.vocabulary, a.hidden);
        let of_windows = a.sliding.as_ref().and_then(|s| s.rotary.clone());
        self.rotary = a.rotary.clone().into_iter().chain(of_windows).collect();
        // Before and after attention, before and after the feed-forward part.
        let [attention_before, attention_after, mlp_before, mlp_after] = match a.norms {
            Norms::Before => [Some("input_layernorm"), None, Some("post_attention_layernorm"), None],
            Norms::After => {
                [None, Some("post_attention_layernorm"), None, Some("post_feedforward_layernorm")]
            }
            Norms::Both => [
                Some("input_layernorm"),
                Some("post_attention_layernorm"),
                Some("pre_feedforward_layernorm"),
                Some("post_feedforward_layernorm"),
            ],
        };
        let (qkv, inputs): (&[_], &[_]) = match a.fused {
            true => (&["qkv_proj"], &["gate_up_proj"]),
            false => (&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]),
        };
        let mut blocks = Vec::new();
        for layer in 0..a.layers {
            let module = format!("model.layers.{layer}");
            let names = Names { attention: format!("{module}.self_attn"), qkv, o: "o_proj" };
            let before = attention_before.map(|name| self.norm(&module, name, a.hidden));
            let mut attention = self.attention(a, &names, None, true);
            if let Some(sliding) = a.sliding.as_ref().filter(|s| s.layers[layer]) {
                attention.window = Some(sliding.window);
                attention.rotary = self.rotary.len().checked_sub(1); // their own, or everybody's
            }
            let after = attention_after.map(|name| self.norm(&module, name, a.hidden));
            blocks.push(Block { before, sublayer: Sublayer::Attention(attention), after });

            let before = mlp_before.map(|name| self.norm(&module, name, a.hidden));
            let mlp = self.feed_forward(a, &format!("{module}.mlp"), inputs, "down_proj");
            let sublayer = Sublayer::FeedForward(mlp);
            let after = mlp_after.map(|name| self.norm(&module, name, a.hidden));
            blocks.push(Block { before, sublayer, after });
        }
        let final_norm = self.norm("model", "norm", a.hidden);
        self.decoder = Some(Stack { blocks, final_norm });
        if !a.tied {
            self.head = Some(self.dense("lm_head.weight".into(), DenseKind::Head, a.vocabulary, a.hidden));
        }
    }

    fn t5(&mut self, a: &Architecture) {
        self.dense("shared.weight".into(), DenseKind::Embedding, a.vocabulary, a.hidden);
        self.encoder = Some(self.t5_stack(a, "encoder", a.encoder_layers, None));
        let memory = self.group();
        self.decoder = Some(self.t5_stack(a, "decoder", a.layers, Some(memory)));
        if !a.tied {
            self.head = Some(self.dense("lm_head.weight".into(), DenseKind::Head, a.vocabulary, a.hidden));
        }
    }

    fn t5_stack(&mut self, a: &Architecture, stack: &str, layers: usize, memory: Option<usize>) -> Stack {
        let mut blocks = Vec::new();
        let mut table = None;
        for layer in 0..layers {
            let module = |sub: usize| format!("{stack}.block.{layer}.layer.{sub}");
            let names = |sub: usize, attention: &str| Names {
                attention: format!("{}.{attention}", module(sub)),
                qkv: &["q", "k", "v"],
                o: "o",
            };
            let before = Some(self.norm(&module(0), "layer_norm", a.hidden));
            let mut own = self.attention(a, &names(0, "SelfAttention"), None, memory.is_some());
            let buckets = a.relative.map_or(0, |r| r.buckets);
            table = table.filter(|_| !a.relative.is_some_and(|r| r.every_layer));
            own.bias = Some(*table.get_or_insert_with(|| {
                let name = format!("{}.SelfAttention.relative_attention_bias.weight", module(0));
                self.dense(name, DenseKind::RelativeBias, buckets, a.heads)
            }));
            blocks.push(Block { before, sublayer: Sublayer::Attention(own), after: None });
            if memory.is_some() {
                let before = Some(self.norm(&module(1), "layer_norm", a.hidden));
                let cross = self.attention(a, &names(1, "EncDecAttention"), memory, false);
                blocks.push(Block { before, sublayer: Sublayer::Attention(cross), after: None });
            }
            let last = module(if memory.is_some() { 2 } else { 1 });
            let before = Some(self.norm(&last, "layer_norm", a.hidden));
            let inputs: &[_] = if a.gated { &["wi_0", "wi_1"] } else { &["wi"] };
            let ff = self.feed_forward(a, &format!("{last}.DenseReluDense"), inputs, "wo");
            blocks.push(Block { before, sublayer: Sublayer::FeedForward(ff), after: None });
        }
        let final_norm = self.norm(stack, "final_layer_norm", a.hidden);
        Stack { blocks, final_norm }
    }
}
