//! Flags of tritonserver that are taken, held against their form, and have no effect here yet. Each
//! that is given says so in one line when the server starts.

use clap::{
    Arg, ArgAction, ArgMatches, Command, FromArgMatches, builder::ValueParser, parser::ValueSource,
};

/// The flags of the table that were given.
#[derive(Clone, Debug, Default)]
pub struct AcceptedFlags {
    given: Vec<&'static Row>,
}

/// One flag.
#[derive(Debug)]
struct Row {
    name: &'static str,
    form: Form,
    about: &'static str,
    /// Why it has no effect.
    reason: &'static str,
}

/// What a value must look like.
#[derive(Clone, Copy, Debug)]
enum Form {
    Whole,
    Text,
    /// Two whole numbers with a character between.
    Pair(char),
}

const WHOLE: &str = "<integer>";
const REACTORS: &str = "all requests are handled by --reactors event loops";
const NO_POOL: &str = "requests and responses come from no pool of objects that could be sized";
const BUILT_IN: &str = "the response caches are a part of this server";
const NO_STATE: &str = "states of sequences lie in the host's memory";

/// Every such flag, in the order of tritonserver's help.
static ROWS: &[Row] = &[
    row("http-thread-count", Form::Whole, "Threads that handle HTTP requests", REACTORS),
    row("grpc-infer-thread-count", Form::Whole, "Threads that handle gRPC requests", REACTORS),
    row(
        "grpc-infer-allocation-pool-size",
        Form::Whole,
        "Request and response objects that are kept for reuse",
        NO_POOL,
    ),
    row(
        "grpc-max-response-pool-size",
        Form::Whole,
        "Response objects that may wait in a queue",
        NO_POOL,
    ),
    row("sagemaker-thread-count", Form::Whole, "Threads for SageMaker", REACTORS),
    row("vertex-ai-thread-count", Form::Whole, "Threads for Vertex AI", REACTORS),
    row(
        "repoagent-directory",
        Form::Text,
        "Where repository agents lie",
        "repository agents come with the server so far, and none from elsewhere can be loaded",
    ),
    row("cache-directory", Form::Text, "Where caches lie", BUILT_IN),
    row(
        "cuda-virtual-address-size",
        Form::Pair(':'),
        "Bytes that a state may grow to on a GPU, as <DEVICE>:<BYTES>",
        NO_STATE,
    ),
    row(
        "buffer-manager-thread-count",
        Form::Whole,
        "Threads that copy tensors",
        "the event loops and the instances' own threads copy tensors",
    ),
];

const fn row(name: &'static str, form: Form, about: &'static str, reason: &'static str) -> Row {
    Row { name, form, about, reason }
}

/// The names of the flags that are taken without effect.
pub fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.name)
}

impl AcceptedFlags {
    /// What the log is to say of those that were given.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        self.given
            .iter()
            .map(|Row { name, reason, .. }| format!("accepted, without effect: --{name}: {reason}"))
    }
}

impl clap::Args for AcceptedFlags {
    fn augment_args(command: Command) -> Command {
        command.args(ROWS.iter().map(Row::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for AcceptedFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |row: &&Row| matches.value_source(row.name) == Some(ValueSource::CommandLine);
        Ok(Self { given: ROWS.iter().filter(given).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Row {
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name)
            .long(self.name)
            .help(format!("{}; without effect so far", self.about))
            .value_name(self.form.value_name())
            .value_parser(self.form.parser())
            // As in tritonserver, a flag may come again.
            .action(ArgAction::Append);
        match self.form {
            Form::Whole => arg.allow_negative_numbers(true),
            _ => arg,
        }
    }
}

impl Form {
    fn value_name(self) -> &'static str {
        match self {
            Self::Whole => "N",
            Self::Text | Self::Pair(..) => "VALUE",
        }
    }

    fn parser(self) -> ValueParser {
        ValueParser::new(move |text: &str| self.check(text))
    }

    fn check(self, text: &str) -> Result<String, String> {
        let is_whole = |text: &str| text.parse::<i64>().is_ok();
        let (fits, expected) = match self {
            Self::Text => (true, String::new()),
            Self::Whole => (is_whole(text), WHOLE.to_owned()),
            Self::Pair(mark) => {
                let parts = text.split_once(mark);
                let fits = parts.is_some_and(|(a, b)| is_whole(a) && is_whole(b));
                (fits, format!("{WHOLE}{mark}{WHOLE}"))
            }
        };
        match fits {
            true => Ok(text.to_owned()),
            false => Err(format!("expected {expected}, got '{text}'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    fn read(flags: &[&str]) -> Result<Vec<String>, String> {
        let command = AcceptedFlags::augment_args(Command::new("nereid"));
        let matches = command
            .try_get_matches_from(["nereid"].iter().chain(flags))
            .map_err(|error| error.to_string())?;
        let flags = AcceptedFlags::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        Ok(flags.warnings().collect())
    }

    #[test]
    fn a_flag_that_is_given_is_named_with_its_reason() {
        assert_eq!(read(&[]), Ok(vec![]));
        let expected = [
            "accepted, without effect: --vertex-ai-thread-count: all requests are handled by --reactors event loops",
            "accepted, without effect: --cuda-virtual-address-size: states of sequences lie in the host's memory",
        ];
        for flags in [
            &["--vertex-ai-thread-count=5", "--cuda-virtual-address-size", "0:1024"][..],
            &[
                "--cuda-virtual-address-size=0:1",
                "--cuda-virtual-address-size=1:1",
                "--vertex-ai-thread-count",
                "1",
            ],
        ] {
            assert_eq!(read(flags).unwrap(), expected);
        }
    }

    #[test]
    fn every_form_is_held_against_the_value() {
        for good in ["--vertex-ai-thread-count=-1", "--cuda-virtual-address-size=0:1"] {
            assert_eq!(read(&[good]).map(|warnings| warnings.len()), Ok(1), "{good}");
        }
        for (bad, told) in [
            (
                "--vertex-ai-thread-count=often",
                "'--vertex-ai-thread-count <N>': expected <integer>, got 'often'",
            ),
            ("--cuda-virtual-address-size=64", "expected <integer>:<integer>, got '64'"),
        ] {
            let error = read(&[bad]).unwrap_err();
            assert!(error.contains(told), "{bad}: {error}");
        }
    }
}
