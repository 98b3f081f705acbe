//! PEFT adapters: `adapter_config.json` and `adapter_model.safetensors` as PEFT's LoRA loads them.
//!
//! The change of a weight between two refreshes is exactly `B A`. After a fold it is not low-rank in
//! general, so the adapter is then the truncated SVD of `W - W0`, with the energy it keeps stated.

use crate::error::{Error, Result};
use faer::Mat;
use faer::linalg::matmul::matmul;
use faer::{Accum, Par};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The change of one linear layer.
pub struct SiteDelta {
    /// Module name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The change of its weight.
    pub delta: Delta,
}

/// `W - W0 [M x N]`, row by row.
pub enum Delta {
    /// Exactly `B [M x R] A [R x N]`.
    Factors {
        /// `[M x R]`
        b: Vec<f32>,
        /// `[R x N]`
        a: Vec<f32>,
        /// R
        rank: usize,
    },
    /// Any matrix.
    Dense {
        /// `[M x N]`
        values: Vec<f32>,
        /// M
        rows: usize,
        /// N
        cols: usize,
    },
}

/// How large an adapter may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RankRule {
    /// The same rank everywhere.
    Fixed(usize),
    /// Per layer the smallest rank that keeps this share of the squared norm (0..1).
    Energy(f64),
}

impl std::str::FromStr for RankRule {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Ok(rank) = text.parse::<usize>() {
            return if rank > 0 { Ok(Self::Fixed(rank)) } else { Err("a rank of at least 1".into()) };
        }
        match text.parse::<f64>() {
            Ok(share) if share > 0.0 && share <= 1.0 => Ok(Self::Energy(share)),
            _ => Err("a rank such as 64, or a share of the energy such as 0.99".into()),
        }
    }
}

/// A layer's adapter: `delta ~ B A`.
pub struct Factors {
    /// Module name.
    pub name: String,
    /// `[M x rank]`
    pub b: Vec<f32>,
    /// `[rank x N]`
    pub a: Vec<f32>,
    /// M
    pub rows: usize,
    /// N
    pub cols: usize,
    /// Rank kept.
    pub rank: usize,
    /// Share of the squared norm of the change that is kept (1 when exact).
    pub energy: f64,
}

/// Factors a layer's change: as it is when it already is a product, else by truncated SVD in f64.
pub fn factor(site: SiteDelta, rule: RankRule) -> Result<Factors> {
    match site.delta {
        Delta::Factors { b, a, rank } => {
            let rank = rank.max(1);
            let (rows, cols) = (b.len() / rank, a.len() / rank);
            Ok(Factors { name: site.name, b, a, rows, cols, rank, energy: 1.0 })
        }
        Delta::Dense { values, rows, cols } => truncate(site.name, &values, rows, cols, rule),
    }
}

fn truncate(name: String, values: &[f32], rows: usize, cols: usize, rule: RankRule) -> Result<Factors> {
    let matrix = Mat::<f64>::from_fn(rows, cols, |i, j| values[i * cols + j] as f64);
    let svd = matrix.thin_svd().map_err(|e| Error::numeric(format!("SVD of the change: {e:?}")).at(&name))?;
    let singular: Vec<f64> = (0..rows.min(cols)).map(|i| svd.S()[i]).collect();
    let total: f64 = singular.iter().map(|s| s * s).sum();
    let rank = match rule {
        RankRule::Fixed(rank) => rank.min(singular.len()),
        RankRule::Energy(share) => {
            let mut kept = 0.0;
            1 + singular
                .iter()
                .take_while(|s| {
                    kept += *s * *s;
                    kept < share * total
                })
                .count()
        }
    }
    .clamp(1, singular.len().max(1));
    let kept: f64 = singular[..rank].iter().map(|s| s * s).sum();
    // The singular value is split evenly, so that B and A are of like size.
    let half: Vec<f64> = singular[..rank].iter().map(|s| s.sqrt()).collect();
    let (u, v) = (svd.U(), svd.V());
    let b = (0..rows * rank).map(|i| (u[(i / rank, i % rank)] * half[i % rank]) as f32).collect();
    let a = (0..rank * cols).map(|i| (v[(i % cols, i / cols)] * half[i / cols]) as f32).collect();
    Ok(Factors { name, b, a, rows, cols, rank, energy: if total > 0.0 { kept / total } else { 1.0 } })
}

/// The largest difference between a change and what its factors give back.
pub fn residual(values: &[f32], factors: &Factors) -> f64 {
    let (m, n, r) = (factors.rows, factors.cols, factors.rank);
    let b = Mat::<f64>::from_fn(m, r, |i, j| factors.b[i * r + j] as f64);
    let a = Mat::<f64>::from_fn(r, n, |i, j| factors.a[i * n + j] as f64);
    let mut product = Mat::<f64>::zeros(m, n);
    matmul(&mut product, Accum::Replace, &b, &a, 1.0, Par::Seq);
    let mut worst = 0f64;
    for i in 0..m {
        for j in 0..n {
            worst = worst.max((product[(i, j)] - values[i * n + j] as f64).abs());
        }
    }
    worst
}

/// What an adapter says about itself.
pub struct AdapterHead<'a> {
    /// Path of the base model; it is written whole, so that the adapter finds it from any directory.
    pub base: &'a str,
    /// `CAUSAL_LM` or `SEQ_2_SEQ_LM`.
    pub task_type: &'a str,
    /// Whole modules saved beside the low-rank ones (embedding and head with new item rows):
    /// module name, rows, columns, values.
    pub modules: Vec<(String, usize, usize, Vec<f32>)>,
}

/// Writes the adapter directory. `lora_alpha` equals `r` for every layer, so the product is used as it is.
pub fn write(dir: &Path, head: &AdapterHead, factors: &[Factors]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    let base = match Path::new(head.base).canonicalize() {
        Ok(whole) => whole.display().to_string(),
        Err(_) => head.base.to_string(),
    };
    let most = factors.iter().map(|f| f.rank).max().unwrap_or(1);
    let pattern: BTreeMap<&str, usize> =
        factors.iter().filter(|f| f.rank != most).map(|f| (f.name.as_str(), f.rank)).collect();
    let names: Vec<&str> = factors.iter().map(|f| f.name.as_str()).collect();
    // By the last part of their names, once each.
    let modules: BTreeSet<&str> =
        head.modules.iter().map(|(name, ..)| name.rsplit('.').next().unwrap_or(name.as_str())).collect();
    let mut config = json!({
        "peft_type": "LORA",
        "task_type": head.task_type,
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": most,
        "lora_alpha": most,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "target_modules": names,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
    });
    if !modules.is_empty() {
        config["modules_to_save"] = json!(modules);
    }
    let text = serde_json::to_vec_pretty(&config).map_err(|e| Error::data(e.to_string()))?;
    crate::files::write_atomically(&dir.join("adapter_config.json"), &text)?;
    let mut tensors: Vec<(String, Vec<usize>, &[f32])> = Vec::new();
    for f in factors {
        tensors.push((format!("base_model.model.{}.lora_A.weight", f.name), vec![f.rank, f.cols], &f.a));
        tensors.push((format!("base_model.model.{}.lora_B.weight", f.name), vec![f.rows, f.rank], &f.b));
    }
    for (name, rows, cols, values) in &head.modules {
        tensors.push((format!("base_model.model.{name}.weight"), vec![*rows, *cols], values));
    }
    let path = dir.join("adapter_model.safetensors");
    let views = tensors
        .iter()
        .map(|(name, shape, values)| {
            safetensors::tensor::TensorView::new(
                safetensors::Dtype::F32,
                shape.clone(),
                bytemuck::cast_slice(values),
            )
            .map(|view| (name.as_str(), view))
            .map_err(|e| Error::data(format!("{name}: {e}")))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| Error::data(e.to_string()))?;
    crate::files::write_atomically(&path, &bytes)
}
