//! Speculation in the playground: the original writes, with a candidate as its draft, beside what it takes alone.

use std::time::Instant;

use super::Workbench;
use super::events::{Event, Outcome};
use super::jobs::{Context, JobKind};
use super::state::{RunId, Speculated};
use super::tasks::ModelCache;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::error::Result;
use crate::engine::scoring::{Drafting, GenerateOptions, generate, speculate};

/// Most tokens that are drafted at once.
pub(super) const MOST_DRAFTED: usize = 16;

/// What is written, and by whom.
struct Asked {
    original: std::sync::Arc<Checkpoint>,
    candidate: std::sync::Arc<Checkpoint>,
    run: RunId,
    prompt: String,
    draft_tokens: usize,
    options: GenerateOptions,
}

impl Workbench {
    /// Lets the original continue the prompt with the focused candidate's drafts.
    pub(super) fn speculate(&mut self) {
        let models = self.models.clone();
        let Some(document) = &mut self.state.document else { return };
        let Some((run, candidate, name)) =
            document.focused().and_then(|run| Some((run.id, run.checkpoint()?.clone(), run.name.clone())))
        else {
            return;
        };
        let playground = &mut document.playground;
        playground.drafting = Some(String::new());
        playground.speculated = None;
        let asked = Asked {
            original: document.checkpoint.clone(),
            candidate,
            run,
            prompt: playground.prompt.clone(),
            draft_tokens: playground.draft_tokens,
            options: GenerateOptions {
                max_tokens: playground.max_tokens,
                temperature: playground.temperature,
                alternatives: 0,
                ..GenerateOptions::default()
            },
        };
        self.jobs.spawn(JobKind::Generate, format!("the original writes, {name} drafts"), move |context| {
            write(&asked, &models, context)
        });
    }
}

fn write(asked: &Asked, models: &ModelCache, context: &Context) -> Result<Outcome> {
    let progress = &context.progress;
    let original = models.get(&asked.original, None, context)?;
    let draft = models.get(&asked.candidate, Some(&original), context)?;
    let (model, codec) = (&original.model, &original.tokenizer);
    let started = Instant::now();
    let alone = generate(model, codec, &asked.prompt, &asked.options, progress, &mut |_| {})?;
    let alone_secs = started.elapsed().as_secs_f64();
    let drafting = Drafting { target: model, draft: &draft.model, length: asked.draft_tokens };
    let generation = speculate(drafting, codec, &asked.prompt, &asked.options, progress, &mut |text| {
        context.offer(Event::Drafted { text: text.to_owned() });
    })?;
    let same = alone.tokens.iter().map(|token| token.id).eq(generation.ids.iter().copied());
    Ok(Outcome::Speculated(Box::new(Speculated {
        run: asked.run,
        draft_tokens: asked.draft_tokens,
        alone_secs_per_token: alone_secs / alone.tokens.len().max(1) as f64,
        is_same_text: (asked.options.temperature <= 0.0).then_some(same),
        generation,
    })))
}
