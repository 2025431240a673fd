//! Writes a checkpoint of a real model's shape with made-up weights, to try speed and memory.
//!
//! `cargo run --release --example synthetic -- FOLDER [tiny|1b|8b|70b] [--sparse]`

use std::path::Path;
use std::process::ExitCode;

#[path = "../tests/common/synthetic.rs"]
mod synthetic;

use synthetic::Shape;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_sparse = arguments.iter().any(|argument| argument == "--sparse");
    let mut words = arguments.iter().filter(|argument| !argument.starts_with("--"));
    let Some(folder) = words.next().map(Path::new) else {
        eprintln!("usage: synthetic FOLDER [tiny|1b|8b|70b] [--sparse]");
        return ExitCode::from(2);
    };
    let shape = match words.next().map_or("1b", String::as_str) {
        "tiny" => Shape::TINY,
        "1b" => Shape::ONE_B,
        "8b" => Shape::EIGHT_B,
        "70b" => Shape::SEVENTY_B,
        other => {
            eprintln!("there is no shape {other:?}; choose tiny, 1b, 8b or 70b");
            return ExitCode::from(2);
        }
    };
    let written = if is_sparse { shape.write_sparse(folder) } else { shape.write(folder, 1) };
    match written {
        Ok(()) => {
            println!("{}: {} weights", folder.display(), shape.weight_count());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot write {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}
