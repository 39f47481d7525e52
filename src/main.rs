//! The `evenkeel` binary: everything is in the library.

fn main() -> std::process::ExitCode {
    evenkeel::cli::main()
}
