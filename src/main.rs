//! The program: a window without a subcommand, the command line with one.

fn main() -> std::process::ExitCode {
    #[cfg(feature = "gui")]
    if let Err(text) = lapidary::app::run(None) {
        eprintln!("error: {text}");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}
