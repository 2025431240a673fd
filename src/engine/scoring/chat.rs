//! Chat templates: the Jinja text with which a model was taught to tell turns apart.
//!
//! A template is applied on request only, since it changes what is measured. It comes from
//! `chat_template.jinja`, `tokenizer_config.json` or GGUF's `tokenizer.chat_template`, and is run as
//! transformers runs it: blocks trimmed, loop controls, Python's string methods, `raise_exception`.

use minijinja::{Environment, ErrorKind, Value, context};

use super::TextCodec;
use super::tasks::{TaskKind, TaskSet};
use crate::checkpoint::Checkpoint;
use crate::error::{Fault, Result, Stage};

/// Longest template.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// A model's chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    /// The end-of-text token as text, which templates write.
    eos: String,
}

/// A codec that recognizes special tokens, for prompts that a template wrote.
#[derive(Clone, Copy)]
pub(super) struct SpecialCodec<'a>(pub &'a dyn TextCodec);

impl TextCodec for SpecialCodec<'_> {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.0.encode_with_special(text)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.0.decode(ids)
    }

    fn bos(&self) -> Option<u32> {
        self.0.bos()
    }

    fn eos(&self) -> &[u32] {
        self.0.eos()
    }
}

fn fault(cause: impl Into<String>) -> Fault {
    Fault::new(Stage::Tasks, cause).fix("leave the chat template out, or correct it in the checkpoint")
}

/// A template in `tokenizer_config.json`: a text, or a list of named ones of which `default` counts.
fn template_of(settings: &serde_json::Value) -> Option<String> {
    match settings.get("chat_template")? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(serde_json::Value::as_str) == Some("default"))
            .or(named.first())
            .and_then(|entry| entry.get("template")?.as_str().map(str::to_owned)),
        _ => None,
    }
}

impl ChatTemplate {
    /// A template from its text; `eos` is the end-of-text token as text.
    pub fn new(source: impl Into<String>, eos: impl Into<String>) -> Result<Self> {
        let template = Self { source: source.into(), eos: eos.into() };
        if template.source.len() > MAX_TEMPLATE_BYTES {
            return Err(fault(format!("the chat template has {} bytes", template.source.len())).into());
        }
        template.environment()?;
        Ok(template)
    }

    /// The checkpoint's template, `None` where it has none.
    pub fn of_checkpoint(checkpoint: &Checkpoint, eos: &str) -> Result<Option<Self>> {
        let source = if let Some(bytes) = checkpoint.read_sidecar("chat_template.jinja")? {
            Some(String::from_utf8(bytes).map_err(|_| fault("chat_template.jinja is not UTF-8"))?)
        } else if let Some(bytes) = checkpoint.read_sidecar("tokenizer_config.json")? {
            let settings: serde_json::Value = serde_json::from_slice(&bytes)
                .map_err(|err| fault(format!("tokenizer_config.json is not JSON: {err}")))?;
            template_of(&settings)
        } else {
            let metadata = checkpoint.gguf_metadata().unwrap_or_default();
            let found = metadata.iter().find(|(key, _)| key == "tokenizer.chat_template");
            found.and_then(|(_, value)| value.as_str()).map(str::to_owned)
        };
        source.map(|source| Self::new(source, eos)).transpose()
    }

    fn environment(&self) -> Result<Environment<'_>> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(5_000_000));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment
            .add_template("chat", &self.source)
            .map_err(|err| fault(format!("the chat template cannot be read: {err}")))?;
        Ok(environment)
    }

    /// The text of turns, each a role and what it says, ready for the assistant's answer.
    pub fn render(&self, turns: &[(&str, &str)]) -> Result<String> {
        let messages: Vec<Value> = turns.iter().map(|(role, content)| context! { role, content }).collect();
        let environment = self.environment()?;
        let template = environment.get_template("chat").map_err(|err| fault(err.to_string()))?;
        // BOS is added with the tokens, so that it is there once.
        let values = context! { messages, add_generation_prompt => true, bos_token => "", eos_token => self.eos };
        Ok(template.render(values).map_err(|err| fault(format!("the chat template refuses a prompt: {err}")))?)
    }

    /// The tasks with every prompt as a user's turn. White space in front of what is scored goes away, since
    /// the assistant's turn begins there.
    pub fn apply(&self, tasks: &TaskSet) -> Result<TaskSet> {
        let items = tasks.items.map(|item| {
            item.kind.map_prompts(&mut |prompt| self.render(&[("user", prompt.trim())]))?;
            if let TaskKind::MultipleChoice { choices, .. } = &mut item.kind {
                for choice in choices {
                    if !choice.trim_start().is_empty() {
                        *choice = choice.trim_start().to_owned();
                    }
                }
            }
            Ok(())
        })?;
        let parts = format!("{} chat {}", tasks.hash, blake3::hash(self.source.as_bytes()).to_hex());
        let hash = blake3::hash(parts.as_bytes()).to_hex().to_string();
        Ok(TaskSet { path: tasks.path.clone(), hash, items, has_special_tokens: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}
    {% if message['role'] not in ['user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}
<|{{ message.role.upper() }}|>
{{ message['content'].strip() }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|ASSISTANT|>
{% endif %}";

    #[test]
    fn turns_are_written_as_the_template_says() {
        let template = ChatTemplate::new(TEMPLATE, "</s>").expect("template");
        let text = template.render(&[("user", " 2 + 2? ")]).expect("text");
        assert_eq!(text, "<|USER|>\n2 + 2?</s>\n<|ASSISTANT|>\n");
        let error = template.render(&[("pirate", "arr")]).expect_err("role").to_string();
        assert!(error.contains("unknown role"), "{error}");
        assert!(ChatTemplate::new("{% if %}", "").is_err());
        let endless =
            ChatTemplate::new("{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}", "");
        assert!(endless.expect("template").render(&[]).is_err());
    }

    #[test]
    fn tasks_get_another_hash_and_their_choices_no_leading_space() {
        let line = r#"{"id":"a","task":"t","slice":"s","type":"multiple_choice","prompt":"Q?","choices":[" x"," y"],"answer":1}"#;
        let tasks = TaskSet::parse(line.as_bytes(), Path::new("t")).expect("tasks");
        let chat = ChatTemplate::new(TEMPLATE, "</s>").expect("template").apply(&tasks).expect("applied");
        // Results are found again by this hash.
        let parts = format!("{} chat {}", tasks.hash, blake3::hash(TEMPLATE.as_bytes()).to_hex());
        assert_eq!(chat.hash, blake3::hash(parts.as_bytes()).to_hex().to_string());
        let kind = chat.items.get(0).expect("an item").kind;
        assert!(chat.has_special_tokens && kind.prompt().starts_with("<|USER|>"));
        assert_eq!(kind.wanted(), "y");
        assert_eq!(tasks.items.get(0).expect("an item").kind.prompt(), "Q?");
    }

    #[test]
    fn a_list_of_templates_has_a_default() {
        let settings = serde_json::json!({"chat_template": [
            {"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]});
        assert_eq!(template_of(&settings).as_deref(), Some("b"));
        assert_eq!(template_of(&serde_json::json!({})), None);
    }
}
