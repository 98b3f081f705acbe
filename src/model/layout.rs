//! How a transformer is put together: stacks of residual blocks over numbered sites and parameters.
//!
//! A stack is a list of blocks `x <- x + f(norm(x))`; a decoder layer is two of them, T5's decoder
//! layer three. Decoder-only and encoder-decoder models differ in nothing else.

use super::architecture::{Architecture, Family};

/// What a linear layer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    O,
    /// The feed-forward block's first matrix (its gate, where it has one).
    Gate,
    /// The feed-forward block's second input matrix.
    Up,
    /// The feed-forward block's output matrix.
    Down,
}

impl Projection {
    /// The name used in settings.
    pub fn name(self) -> &'static str {
        match self {
            Projection::Q => "q",
            Projection::K => "k",
            Projection::V => "v",
            Projection::O => "o",
            Projection::Gate => "gate",
            Projection::Up => "up",
            Projection::Down => "down",
        }
    }
}

/// A linear layer: where it is and what shape it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Its Hugging Face module name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// What it does.
    pub kind: Projection,
    /// M.
    pub outputs: usize,
    /// N.
    pub inputs: usize,
    /// Sites with the same number read the same input.
    pub input_group: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

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

/// An attention block.
#[derive(Debug, Clone)]
pub struct AttentionBlock {
    /// Norm in front (dense parameter).
    pub norm: usize,
    /// Sites of q, k, v, o.
    pub sites: [usize; 4],
    /// Norms of q and k per head (dense parameters).
    pub qk_norm: Option<[usize; 2]>,
    /// Reads keys and values from the encoder.
    pub cross: bool,
    /// Every row sees only rows up to itself.
    pub causal: bool,
    /// Relative position bias table (dense parameter).
    pub bias: Option<usize>,
}

/// A feed-forward block.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// Norm in front (dense parameter).
    pub norm: usize,
    /// Site of the gate (or only) input matrix.
    pub gate: usize,
    /// Site of the second input matrix, where gated.
    pub up: Option<usize>,
    /// Site of the output matrix.
    pub down: usize,
}

/// One residual block.
#[derive(Debug, Clone)]
pub enum Block {
    /// Attention.
    Attention(AttentionBlock),
    /// Feed-forward.
    FeedForward(FeedForward),
}

impl Block {
    /// What it is, for traces.
    pub fn name(&self) -> &'static str {
        match self {
            Block::Attention(_) => "attention",
            Block::FeedForward(_) => "feed-forward",
        }
    }
    /// The norm in front.
    pub fn norm(&self) -> usize {
        match self {
            Block::Attention(a) => a.norm,
            Block::FeedForward(f) => f.norm,
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
    groups: usize,
}

/// The names of one layer's modules in a family's checkpoints.
struct Names {
    attention_norm: String,
    attention: String,
    q: &'static str,
    k: &'static str,
    v: &'static str,
    o: &'static str,
}

impl Layout {
    /// The embedding table's number among the dense parameters.
    pub const EMBEDDING: usize = 0;

    /// The layout of an architecture.
    pub fn new(a: &Architecture) -> Self {
        let mut layout = Layout::default();
        if a.family == Family::T5 {
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
            match block {
                Block::Attention(a) => a.sites.iter().for_each(|s| found[*s] = true),
                Block::FeedForward(f) => {
                    [Some(f.gate), f.up, Some(f.down)].into_iter().flatten().for_each(|s| found[s] = true);
                }
            }
        }
        for block in &self.decoder().blocks {
            if let Block::Attention(AttentionBlock { cross: true, sites: [_, k, v, _], .. }) = block {
                (found[*k], found[*v]) = (true, true);
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
        kind: Projection,
        outputs: usize,
        inputs: usize,
        group: usize,
        bias: bool,
    ) -> usize {
        let site = self.sites.len();
        if bias {
            self.dense(format!("{name}.bias"), DenseKind::Bias(site), 1, outputs);
        }
        self.sites.push(Site { name, kind, outputs, inputs, input_group: group, bias });
        site
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
        let norm = self.dense(format!("{}.weight", n.attention_norm), DenseKind::Norm, 1, a.hidden);
        let own = self.group();
        let source = cross.unwrap_or(own);
        let (queries, keys) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let name = |part: &str| format!("{}.{part}", n.attention);
        let q = self.site(name(n.q), Projection::Q, queries, a.hidden, own, a.qkv_bias);
        let k = self.site(name(n.k), Projection::K, keys, a.hidden, source, a.qkv_bias);
        let v = self.site(name(n.v), Projection::V, keys, a.hidden, source, a.qkv_bias);
        let group = self.group();
        let o = self.site(name(n.o), Projection::O, a.hidden, queries, group, a.o_bias);
        let qk_norm = a.qk_norm.then(|| {
            [name("q_norm.weight"), name("k_norm.weight")]
                .map(|n| self.dense(n, DenseKind::Norm, 1, a.head_dim))
        });
        AttentionBlock { norm, sites: [q, k, v, o], qk_norm, cross: cross.is_some(), causal, bias: None }
    }

    fn feed_forward(
        &mut self,
        a: &Architecture,
        norm: String,
        module: &str,
        names: [&str; 3],
    ) -> FeedForward {
        let norm = self.dense(format!("{norm}.weight"), DenseKind::Norm, 1, a.hidden);
        let (input, inner) = (self.group(), self.group());
        let name = |part: &str| format!("{module}.{part}");
        let gate = self.site(name(names[0]), Projection::Gate, a.intermediate, a.hidden, input, a.mlp_bias);
        let up = a
            .gated
            .then(|| self.site(name(names[1]), Projection::Up, a.intermediate, a.hidden, input, a.mlp_bias));
        let down = self.site(name(names[2]), Projection::Down, a.hidden, a.intermediate, inner, a.mlp_bias);
        FeedForward { norm, gate, up, down }
    }

    fn decoder_only(&mut self, a: &Architecture) {
        self.dense("model.embed_tokens.weight".into(), DenseKind::Embedding, a.vocabulary, a.hidden);
        let mut blocks = Vec::new();
        for layer in 0..a.layers {
            let module = format!("model.layers.{layer}");
            let names = Names {
                attention_norm: format!("{module}.input_layernorm"),
                attention: format!("{module}.self_attn"),
                q: "q_proj",
                k: "k_proj",
                v: "v_proj",
                o: "o_proj",
            };
            blocks.push(Block::Attention(self.attention(a, &names, None, true)));
            let norm = format!("{module}.post_attention_layernorm");
            let parts = ["gate_proj", "up_proj", "down_proj"];
            blocks.push(Block::FeedForward(self.feed_forward(a, norm, &format!("{module}.mlp"), parts)));
        }
        let final_norm = self.dense("model.norm.weight".into(), DenseKind::Norm, 1, a.hidden);
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
                attention_norm: format!("{}.layer_norm", module(sub)),
                attention: format!("{}.{attention}", module(sub)),
                q: "q",
                k: "k",
                v: "v",
                o: "o",
            };
            let mut own = self.attention(a, &names(0, "SelfAttention"), None, memory.is_some());
            let buckets = a.relative.map_or(0, |r| r.buckets);
            own.bias = Some(*table.get_or_insert_with(|| {
                let name = format!("{}.SelfAttention.relative_attention_bias.weight", module(0));
                self.dense(name, DenseKind::RelativeBias, buckets, a.heads)
            }));
            blocks.push(Block::Attention(own));
            if memory.is_some() {
                blocks.push(Block::Attention(self.attention(a, &names(1, "EncDecAttention"), memory, false)));
            }
            let last = module(if memory.is_some() { 2 } else { 1 });
            let parts = if a.gated { ["wi_0", "wi_1", "wo"] } else { ["wi", "", "wo"] };
            let ff =
                self.feed_forward(a, format!("{last}.layer_norm"), &format!("{last}.DenseReluDense"), parts);
            blocks.push(Block::FeedForward(ff));
        }
        let final_norm = self.dense(format!("{stack}.final_layer_norm.weight"), DenseKind::Norm, 1, a.hidden);
        Stack { blocks, final_norm }
    }
}
