//! What goes wrong: usage, bad input, no display, interrupts.

use super::*;

#[test]
fn wrong_usage_exits_with_2_and_says_what_there_is() {
    let cases: [(&[&str], &str); 12] = [
        (&["inspcet", "demo"], "inspect, profile"),
        (&["inspect"], "<PATH>"),
        (&["run", "demo", "-o", "x"], "--plan"),
        (&["run", "demo", "--recipe", "Q4_K_M"], "--output"),
        (&["run", "demo", "--recipe", "Q9", "-o", "x"], "Q4_K_M"),
        (&["plan", "demo", "--format", "q9"], "q4_k"),
        (&["plan", "demo", "--size", "much"], "--size"),
        (&["plan", "demo", "--set", "*"], "GLOB=FORMAT"),
        (&["inspect", "demo", "--threads", "0"], "--threads"),
        (&["sensitivity", "demo", "--metric", "hessian"], "weight, output, fisher, kld"),
        (&["evaluate", "demo", "--perplexity", "mine"], "strided"),
        (&["compare", "demo"], "<CANDIDATE>"),
    ];
    for (arguments, expected) in cases {
        let message = fails(2, arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    let folder = folder();
    json(["demo", "-o", path_text(folder.path())]);
    let message = fails(2, ["evaluate", path_text(folder.path())]);
    assert!(message.contains("--tasks"), "{message}");
    let message = fails(2, ["sensitivity", path_text(folder.path()), "--metric", "kld"]);
    assert!(message.contains("--calibration"), "{message}");
}

#[test]
fn bad_input_exits_with_1_and_one_clear_message() {
    let folder = folder();
    let missing = folder.path().join("missing.gguf");
    let message = fails(1, ["inspect", path_text(&missing), "--json"]);
    assert!(message.contains("missing.gguf"), "{message}");

    let model = candidate(folder.path(), "Q8_0");
    let bytes = std::fs::read(&model).expect("the file");
    let cut = folder.path().join("cut.gguf");
    for length in [0, 3, 40, 5_000, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&cut, &bytes[..length]).expect("writes");
        let message = fails(1, ["inspect", path_text(&cut)]);
        assert!(message.contains("cut.gguf"), "{length}: {message}");
    }
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/model.safetensors")).expect("it");
    let cut = folder.path().join("cut.safetensors");
    for length in [7, 2_000, bytes.len() - 1] {
        std::fs::write(&cut, &bytes[..length]).expect("writes");
        let message = fails(1, ["run", path_text(&cut), "--recipe", "Q4_K_M", "-o", "never.gguf"]);
        assert!(message.contains("cut.safetensors"), "{length}: {message}");
    }

    let plan = folder.path().join("plan.toml");
    std::fs::write(&plan, "version = 1\ntarget = \"gguf\"\n[[rule]]\nmatch = \"*.nothing\"\nformat = \"q4_k\"\n")
        .expect("writes");
    let message = fails(1, ["run", "demo", "--plan", path_text(&plan), "-o", path_text(&missing)]);
    assert!(message.contains("line 4") && message.contains("plan.toml"), "{message}");

    let message = fails(1, ["run", "demo", "--recipe", "Q4_K_M", "-o", path_text(&folder.path().join("out"))]);
    assert!(message.contains(".gguf"), "{message}");

    let nowhere = folder.path().join("no/such/plan.toml");
    let message = fails(1, ["plan", "demo", "--recipe", "Q4_K_M", "-o", path_text(&nowhere)]);
    assert!(message.contains("no/such"), "{message}");
    assert!(!missing.exists());
}

#[test]
fn the_original_is_never_written_to() {
    let folder = folder();
    json(["demo", "-o", path_text(folder.path())]);
    let weights = folder.path().join("model.safetensors");
    let before = std::fs::read(&weights).expect("weights");
    for arguments in [
        ["run", path_text(folder.path()), "--recipe", "Q4_K_M", "-o", path_text(&weights)],
        ["plan", path_text(folder.path()), "--recipe", "Q4_K_M", "-o", path_text(&weights)],
    ] {
        let message = fails(1, arguments);
        assert!(message.contains("original"), "{message}");
    }
    assert!(std::fs::read(&weights).expect("weights") == before);
}

#[cfg(target_os = "linux")]
#[test]
fn without_a_display_it_says_so_in_one_sentence_and_names_the_command_line() {
    for arguments in [&[][..], &[concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo")][..]] {
        let message = fails(1, arguments);
        assert!(message.contains("lapidary --help") && message.lines().count() == 1, "{message}");
        if cfg!(feature = "gui") {
            assert!(message.contains("no display"), "{message}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for arguments in [&["inspect", "demo", "--json"][..], &["generate", "demo", "--prompt", "x", "--max-tokens", "40"]]
    {
        let mut child =
            command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{arguments:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_run_with_130_and_leaves_nothing() {
    let (source, target) = (folder(), folder());
    let shape = synthetic::Shape {
        layers: 4,
        hidden: 1024,
        mlp: 4096,
        heads: 16,
        kv_heads: 4,
        head_dim: 64,
        vocab: 8192,
        tied: true,
    };
    shape.write(source.path(), 1).expect("a checkpoint");
    let out = target.path().join("out.gguf");
    std::fs::write(&out, "old").expect("writes");
    let mut child = command()
        .args(["run", path_text(source.path()), "--recipe", "Q3_K_M", "--threads", "1", "-o", path_text(&out)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let started = Instant::now();
    while names(target.path()).len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(30) && child.try_wait().expect("waits").is_none(), "it writes");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("is told");
    let asked = Instant::now();
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(text(&output.stderr), "interrupted\n");
    assert_eq!(text(&output.stdout), "");
    assert_eq!(names(target.path()), ["out.gguf"]);
    assert_eq!(std::fs::read_to_string(&out).expect("reads"), "old");
}
