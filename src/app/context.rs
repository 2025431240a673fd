//! What a panel is given: the workbench to read, a list for its commands, and its own memory.
//!
//! Panels never change the project. What they remember between frames (a filter, a chosen metric,
//! shaped plot data) lies in [`Memory`], one field a panel, and is lost when the window closes.

use super::{panels, views};
use crate::workbench::{Action, Command, Document, State, Workbench};

/// Passed to every panel, once a frame.
pub struct Cx<'a> {
    /// The workbench, to read.
    pub bench: &'a Workbench,
    /// What the panel wants done; carried out after the frame, in order.
    pub commands: &'a mut Vec<Command>,
    /// What panels remember between frames.
    pub memory: &'a mut Memory,
}

impl<'a> Cx<'a> {
    /// What there is to show.
    pub fn state(&self) -> &'a State {
        self.bench.state()
    }

    /// The open document, if any.
    pub fn document(&self) -> Option<&'a Document> {
        self.bench.state().document.as_ref()
    }

    /// Asks for a command.
    pub fn send(&mut self, command: impl Into<Command>) {
        self.commands.push(command.into());
    }

    /// Asks for an action, if it can be done now.
    pub fn act(&mut self, action: Action) {
        self.commands.push(action.into());
    }

    /// True while editing controls are hidden.
    pub fn is_presenting(&self) -> bool {
        self.bench.state().presenter
    }
}

/// What panels remember between frames.
#[derive(Default)]
pub struct Memory {
    pub tensors: panels::tensors::Memory,
    pub inspector: panels::inspector::Memory,
    pub palette: panels::palette::Memory,
    pub dialogs: panels::dialogs::Memory,
    pub standing: panels::standing::Memory,
    pub overview: views::overview::Memory,
    pub weights: views::weights::Memory,
    pub sensitivity: views::sensitivity::Memory,
    pub plan: views::plan::Memory,
    pub heads: views::heads::Memory,
    pub runs: views::runs::Memory,
    pub compare: views::compare::Memory,
    pub playground: views::playground::Memory,
    pub report: views::report::Memory,
}
