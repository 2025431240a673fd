//! Windows of a text that scores are computed on.

use crate::checkpoint::ModelConfig;
use crate::error::{Fault, Result, Stage};
use crate::scoring::text::windows;
use crate::scoring::{Convention, TextCodec, TextSource, check_ids};

/// How a text is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleOptions {
    /// Tokens a window, BOS included; 512 or the model's context where that is shorter.
    pub context: Option<usize>,
    /// At most so many windows; all of the text's otherwise.
    pub max_windows: Option<usize>,
}

/// Token windows of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The windows, BOS first where the model has one.
    pub windows: Vec<Vec<u32>>,
    /// BLAKE3 of the text.
    pub text_hash: String,
}

impl Sample {
    /// Cuts a text.
    ///
    /// # Errors
    /// A text too short for one window, a window longer than the model's context, or a tokenizer of another model.
    pub fn new(
        text: &TextSource,
        codec: &dyn TextCodec,
        config: &ModelConfig,
        options: &SampleOptions,
    ) -> Result<Self> {
        let context = options.context.unwrap_or(config.context.min(512));
        if context < 2 || context > config.context {
            return Err(Fault::new(Stage::Calibration, format!("windows of {context} tokens do not fit the model"))
                .fix(format!("choose 2 to {} tokens", config.context))
                .into());
        }
        let ids = codec.encode(&text.text)?;
        check_ids(&ids, config.vocab)?;
        let mut found: Vec<Vec<u32>> =
            windows(&ids, codec.bos(), Convention::LlamaCpp, context).into_iter().map(|window| window.ids).collect();
        if found.is_empty() {
            let cause = format!("the text has {} tokens, too few for one window of {context}", ids.len());
            let fault = Fault::new(Stage::Calibration, cause).fix("use a longer text or shorter windows");
            return Err(fault.file(&text.path).into());
        }
        found.truncate(options.max_windows.unwrap_or(usize::MAX).max(1));
        Ok(Self { windows: found, text_hash: text.hash.clone() })
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|window| window.len() as u64).sum()
    }
}
