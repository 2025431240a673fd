//! The limits of `lapidary plan`: what the result must keep to, stated in the plan and planned for.

use clap::Args;

use crate::engine::checkpoint::ModelConfig;
use crate::engine::plan::budget::Limit;
use crate::engine::plan::constraints::{CACHE_TYPES, MemoryLimit, RequestLimit, SliceMargin};
use crate::engine::plan::{Constraints, Plan};
use crate::engine::units;

/// What the result must keep to.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Limits: kept in the plan as [constraints]; formats are chosen for them unless --recipe or --format does"
)]
pub(super) struct Limits {
    /// A file of at most this size, metadata and tokenizer included, such as 3.2GiB or plain bytes
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
    /// At most so many bits per weight, scales included; not kept in the plan
    #[arg(long, value_name = "BPW", value_parser = positive, conflicts_with_all = ["recipe", "format", "size"])]
    bits: Option<f64>,
    /// At most this KLD in nats: predicted while planning, measured by a gate; alone, it asks for fewest bytes
    #[arg(long, value_name = "NATS", value_parser = positive)]
    max_kld: Option<f64>,
    /// At most this much memory for weights and KV cache
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// With --memory: tokens in the KV cache [default: 4096]
    #[arg(long, value_name = "N", requires = "memory", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// With --memory: how keys and values are stored [default: f16]
    #[arg(long, value_name = "TYPE", requires = "memory", value_parser = CACHE_TYPES)]
    kv_cache: Option<String>,
    /// At least so many tokens written a second on this machine; needs `lapidary bench --rates` once
    #[arg(long, value_name = "TOK_PER_S", value_parser = positive)]
    min_decode_tps: Option<f64>,
    /// At least so many tokens of a prompt read a second on this machine
    #[arg(long, value_name = "TOK_PER_S", value_parser = positive)]
    min_prefill_tps: Option<f64>,
    /// At most so many seconds from the first token read to the last one written
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    max_request_secs: Option<f64>,
    /// With --max-request-secs: tokens read [default: 512]
    #[arg(long, value_name = "N", requires = "max_request_secs", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: Option<u32>,
    /// With --max-request-secs: tokens written [default: 128]
    #[arg(long, value_name = "N", requires = "max_request_secs", value_parser = clap::value_parser!(u32).range(1..))]
    output_tokens: Option<u32>,
    /// Slices that may not lose more accuracy than this, such as 'facts/*=0.02'; judged once measured; may be repeated
    #[arg(long, value_name = "GLOB=FRACTION", value_parser = margin)]
    max_slice_loss: Vec<SliceMargin>,
}

impl Limits {
    /// Adds what was given to the plan's constraints.
    pub(super) fn state(&self, plan: &mut Plan) {
        let mut constraints = plan.constraints().clone();
        let Constraints { max_file_bytes, max_memory, max_request, max_kld, slices, .. } = &mut constraints;
        *max_file_bytes = self.size.or(*max_file_bytes);
        *max_kld = self.max_kld.or(*max_kld);
        if let Some(bytes) = self.memory {
            let usual = MemoryLimit::new(bytes);
            let cache = self.kv_cache.as_deref().and_then(|id| CACHE_TYPES.into_iter().find(|known| *known == id));
            let context = self.context.map_or(usual.context, |context| context as usize);
            *max_memory = Some(MemoryLimit { context, cache: cache.unwrap_or(usual.cache), ..usual });
        }
        if let Some(seconds) = self.max_request_secs {
            let usual = RequestLimit::new(seconds);
            *max_request = Some(RequestLimit {
                seconds,
                prompt_tokens: self.prompt_tokens.map_or(usual.prompt_tokens, |count| count as usize),
                output_tokens: self.output_tokens.map_or(usual.output_tokens, |count| count as usize),
            });
        }
        for margin in &self.max_slice_loss {
            slices.retain(|known| known.slice != margin.slice);
            slices.push(margin.clone());
        }
        let speeds = (&mut constraints.min_decode_tokens_per_second, &mut constraints.min_prefill_tokens_per_second);
        *speeds.0 = self.min_decode_tps.or(*speeds.0);
        *speeds.1 = self.min_prefill_tps.or(*speeds.1);
        if constraints != *plan.constraints() {
            plan.set_constraints(constraints);
        }
    }

    /// What is to be planned for: all that the plan states, and bits per weight.
    pub(super) fn limits(&self, plan: &Plan, config: Option<&ModelConfig>) -> Vec<Limit> {
        let stated = plan.constraints().limits(config);
        let is_by_damage = |limit: &Limit| matches!(limit, Limit::Damage(_));
        match self.bits.map(Limit::BitsPerWeight) {
            Some(bits) => std::iter::once(bits).chain(stated.into_iter().filter(|one| !is_by_damage(one))).collect(),
            None => stated,
        }
    }

    /// True if one that can be planned for was given here.
    pub(super) fn is_given(&self) -> bool {
        let sizes = self.size.is_some() || self.memory.is_some() || self.bits.is_some();
        let speeds = [self.min_decode_tps, self.min_prefill_tps, self.max_request_secs];
        sizes || self.max_kld.is_some() || speeds.iter().any(Option::is_some)
    }
}

/// Reads a size.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bytes = units::parse_bytes(text).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "write a size such as 3.2GiB, 800MB or 1234567".to_owned())
}

/// Reads a number above zero.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| "write a number above zero".to_owned())
}

/// Reads `GLOB=FRACTION`.
fn margin(text: &str) -> Result<SliceMargin, String> {
    let usage = || "write it as GLOB=FRACTION, such as 'facts/*=0.02' for two points".to_owned();
    let (slice, fraction) = text.rsplit_once('=').ok_or_else(usage)?;
    let max_loss = fraction.parse::<f64>().map_err(|_| usage())?;
    SliceMargin::new(slice, max_loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_nonsense_is_answered_with_an_example() {
        assert_eq!(size("3.2GiB"), Ok(3_435_973_836));
        for bad in ["big", "0"] {
            assert!(size(bad).is_err_and(|message| message.contains("3.2GiB")));
        }
        assert_eq!(positive("4.5"), Ok(4.5));
        for bad in ["0", "-1", "nan", "inf", "x"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
        assert_eq!(margin("facts/*=0.02"), Ok(SliceMargin { slice: "facts/*".to_owned(), max_loss: 0.02 }));
        for bad in ["facts", "facts=2", "[=0.1"] {
            assert!(margin(bad).is_err(), "{bad}");
        }
    }
}
