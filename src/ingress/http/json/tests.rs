use proptest::prelude::*;

use super::*;

fn skip_all(text: &[u8]) -> Result<(), SyntaxError> {
    let mut cursor = Cursor::new(text)?;
    cursor.skip()?;
    cursor.finish()
}

#[test]
fn what_is_no_json_is_refused_with_tritons_text_and_the_place() {
    for (text, problem, at) in [
        ("", Problem::Empty, 0),
        (" \n\t", Problem::Empty, 3),
        ("{} x", Problem::TrailingValues, 3),
        ("x", Problem::InvalidValue, 0),
        ("[1,]", Problem::InvalidValue, 3),
        ("[", Problem::InvalidValue, 1),
        ("tru", Problem::InvalidValue, 0),
        ("nul", Problem::InvalidValue, 0),
        ("-", Problem::InvalidValue, 1),
        ("+1", Problem::InvalidValue, 0),
        (".5", Problem::InvalidValue, 0),
        ("01", Problem::TrailingValues, 1),
        ("{1:2}", Problem::MissingName, 1),
        ("{\"a\":1,}", Problem::MissingName, 7),
        ("{\"a\" 1}", Problem::MissingColon, 5),
        ("{\"a\":1 \"b\":2}", Problem::MissingCommaInObject, 7),
        ("[1 2]", Problem::MissingCommaInArray, 3),
        ("[1}", Problem::MissingCommaInArray, 2),
        ("\"ab", Problem::UnclosedString, 3),
        ("\"a\\", Problem::UnclosedString, 3),
        ("\"a\nb\"", Problem::InvalidEncoding, 2),
        ("\"\\q\"", Problem::InvalidEscape, 3),
        ("\"\\u12g4\"", Problem::InvalidHex, 5),
        ("\"\\ud800x\"", Problem::InvalidSurrogate, 7),
        ("\"\\ud800\\u0041\"", Problem::InvalidSurrogate, 13),
        ("\"\\udc00\"", Problem::InvalidSurrogate, 7),
        ("1.", Problem::MissingFraction, 2),
        ("1.e5", Problem::MissingFraction, 2),
        ("1e", Problem::MissingExponent, 2),
        ("1e+", Problem::MissingExponent, 3),
    ] {
        assert_eq!(skip_all(text.as_bytes()), Err(SyntaxError { problem, at }), "{text}");
    }
    let error = skip_all(b"\"\xff\"").unwrap_err();
    assert_eq!(error, SyntaxError { problem: Problem::InvalidEncoding, at: 1 });
    assert_eq!(
        error.to_string(),
        "failed to parse the request JSON buffer: Invalid encoding in string. at 1"
    );
}

#[test]
fn a_hundred_levels_are_read_and_one_more_is_refused() {
    let nested = |levels: usize, open: &str, close: &str| {
        format!("{}1{}", open.repeat(levels), close.repeat(levels))
    };
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        let per_repeat = open.len().div_ceil(5);
        let fits = nested(100 / per_repeat, open, close);
        assert_eq!(skip_all(fits.as_bytes()), Ok(()), "{open}");
        let deep = nested(100 / per_repeat + 1, open, close);
        assert_eq!(skip_all(deep.as_bytes()).unwrap_err().problem, Problem::TooDeep, "{open}");
    }
    let deep = nested(101, "[", "]");
    let mut cursor = Cursor::new(deep.as_bytes()).unwrap();
    let outcome = cursor.leaves(|cursor| cursor.number().map(drop));
    assert_eq!(outcome.unwrap_err().problem, Problem::TooDeep);
    assert_eq!(skip_all("[".repeat(1 << 20).as_bytes()).unwrap_err().problem, Problem::TooDeep);
}

#[test]
fn strings_are_unescaped_and_borrowed_where_they_can_be() {
    let mut cursor = Cursor::new(br#""plain \u00fc""#).unwrap();
    assert_eq!(cursor.string().unwrap(), "plain ü");
    let mut cursor = Cursor::new(br#""\"\\\/\b\f\n\r\t\u0041\ud83d\ude00.""#).unwrap();
    assert_eq!(cursor.string().unwrap(), "\"\\/\u{8}\u{c}\n\r\tA😀.");
    let mut cursor = Cursor::new("\"plain ü\"".as_bytes()).unwrap();
    assert!(matches!(cursor.string(), Ok(std::borrow::Cow::Borrowed("plain ü"))));
}

#[test]
fn leaves_are_read_in_order_whatever_their_nesting() {
    for (text, expected) in [
        ("[]", vec![]),
        ("[[],[[]]]", vec![]),
        ("[1,2,3]", vec![1, 2, 3]),
        (" [ [1 , 2] , [ 3 , [ 4 ] ] , 5 ] ", vec![1, 2, 3, 4, 5]),
    ] {
        let mut cursor = Cursor::new(text.as_bytes()).unwrap();
        let mut leaves = Vec::new();
        let outcome = cursor.leaves(|cursor| {
            leaves.push(cursor.number()?.to_i64().unwrap());
            Ok::<(), SyntaxError>(())
        });
        assert_eq!(outcome, Ok(()), "{text}");
        assert_eq!(leaves, expected);
        assert_eq!(cursor.finish(), Ok(()));
    }
    for text in ["[1,]", "[,1]", "[1", "[[1]", "[1}", "[[1],,2]"] {
        let mut cursor = Cursor::new(text.as_bytes()).unwrap();
        assert!(cursor.leaves(|cursor| cursor.number().map(drop)).is_err(), "{text}");
    }
}

#[test]
fn integers_are_exact_to_the_ends_of_their_range() {
    for (text, unsigned, signed) in [
        ("0", Some(0), Some(0)),
        ("-0", Some(0), Some(0)),
        ("18446744073709551615", Some(u64::MAX), None),
        ("18446744073709551616", None, None),
        ("9223372036854775807", Some(i64::MAX as u64), Some(i64::MAX)),
        ("9223372036854775808", Some(1 << 63), None),
        ("-9223372036854775808", None, Some(i64::MIN)),
        ("-9223372036854775809", None, None),
        ("1.0", None, None),
        ("1e2", None, None),
        ("NaN", None, None),
        ("-Infinity", None, None),
    ] {
        let (number, length) = Number::read(text, 0).unwrap();
        assert_eq!(length, text.len());
        assert_eq!(number.to_u64(), unsigned, "{text}");
        assert_eq!(number.to_i64(), signed, "{text}");
    }
}

#[test]
fn floats_beyond_the_largest_are_refused_and_special_ones_are_read() {
    let number = |text| Number::read(text, 0).unwrap().0;
    assert_eq!(number("1e39").to_f32(), None);
    assert_eq!(number("-3.5e38").to_f32(), None);
    assert_eq!(number("1e309").to_f64(), None);
    assert_eq!(number("1e-400").to_f64(), Some(0.0));
    assert_eq!(number("1e99999999999999999999").to_f64(), None);
    assert_eq!(number("0e99999999999999999999").to_f64(), Some(0.0));
    assert_eq!(number("-Inf").to_f32(), Some(f32::NEG_INFINITY));
    assert_eq!(number("Infinity").to_f64(), Some(f64::INFINITY));
    assert!(number("NaN").to_f32().unwrap().is_nan());
    assert!(number("-0.0").to_f32().unwrap().is_sign_negative());
    // Between two neighbours: the exact tie goes to even, a hair above it goes up.
    assert_eq!(number("16777217").to_f32(), Some(16_777_216.0));
    assert_eq!(number("16777217.000000001").to_f32(), Some(16_777_218.0));
}

#[test]
fn floats_are_written_as_short_as_they_can_be() {
    let mut json = Vec::new();
    for value in [0.1, 1.0, -2.5e-8, 16_777_216.0, f64::NAN, f64::INFINITY] {
        write_f64(&mut json, value);
        json.push(b' ');
    }
    write_f64(&mut json, f64::NEG_INFINITY);
    assert_eq!(std::str::from_utf8(&json), Ok("0.1 1.0 -2.5e-8 16777216.0 NaN Infinity -Infinity"));
}

/// Text that is JSON or nearly so.
fn nearly_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?[0-9]{1,4}(\\.[0-9]{1,3})?([eE][+-]?[0-9])?",
        "\"([a-zü ]|\\\\[nt\"\\\\/u]|\\\\u00[0-9a-f]{2}){0,4}\"",
    ];
    let tree = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(("[a-c]{0,2}", inner), 0..4).prop_map(|members| {
                let members: Vec<_> =
                    members.iter().map(|(name, value)| format!("\"{name}\" : {value}")).collect();
                format!("{{ {} }}", members.join(" , "))
            }),
        ]
    });
    (tree, any::<prop::sample::Index>(), "[\\[\\]{},:\"0-9a-z \\\\.-]?", any::<bool>()).prop_map(
        |(mut text, at, replacement, damage)| {
            if damage {
                let mut at = at.index(text.len() + 1);
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                let end = text[at..].chars().next().map_or(at, |next| at + next.len_utf8());
                text.replace_range(at..end, &replacement);
            }
            text
        },
    )
}

proptest! {
    #[test]
    fn what_is_json_is_what_another_reader_takes_for_it(text in nearly_json()) {
        let known = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        // The other reader does not look for pairs of surrogates in what it ignores.
        let surrogate = matches!(skip_all(text.as_bytes()), Err(SyntaxError { problem: Problem::InvalidSurrogate, .. }));
        prop_assert_eq!(skip_all(text.as_bytes()).is_ok() || surrogate, known, "{}", text);
    }

    #[test]
    fn no_bytes_upset_the_cursor(text in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = skip_all(&text);
    }

    #[test]
    fn decimals_become_the_nearest_floats(
        text in "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?(e[+-]?[0-9]{1,2})?",
    ) {
        let (number, length) = Number::read(&text, 0).unwrap();
        prop_assert_eq!(length, text.len());
        let finite = |value: f64| value.is_finite().then_some(value);
        prop_assert_eq!(number.to_f64(), finite(text.parse().unwrap()));
        let narrow: f32 = text.parse().unwrap();
        prop_assert_eq!(number.to_f32(), narrow.is_finite().then_some(narrow));
    }

    #[test]
    fn a_short_integer_is_what_a_number_is(text in "[ ]?-?(0|[0-9]{1,22})([.eE][0-9]?)?[ ,\\]x]?") {
        let mut cursor = Cursor::new(text.as_bytes()).unwrap();
        let mut other = cursor.clone();
        match cursor.short_integer() {
            None => {
                let text = |number: Result<Number<'_>, _>| number.map(|number| number.text().to_owned());
                prop_assert_eq!(text(cursor.number()), text(other.number()));
            }
            Some(integer) => prop_assert_eq!(other.number().unwrap().to_u64(), Some(integer)),
        }
        prop_assert_eq!(cursor.remaining(), other.remaining());
    }

    #[test]
    fn floats_survive_being_written(narrow in any::<f32>(), wide in any::<f64>()) {
        let mut json = Vec::new();
        write_f64(&mut json, narrow.into());
        let text = String::from_utf8(json).unwrap();
        let read = Number::read(&text, 0).unwrap().0.to_f32().unwrap();
        prop_assert!(read.to_bits() == narrow.to_bits() || read.is_nan() && narrow.is_nan());
        let mut json = Vec::new();
        write_f64(&mut json, wide);
        let text = String::from_utf8(json).unwrap();
        let read = Number::read(&text, 0).unwrap().0.to_f64().unwrap();
        prop_assert!(read.to_bits() == wide.to_bits() || read.is_nan() && wide.is_nan());
    }

    #[test]
    fn strings_survive_being_written(string in "\\PC{0,20}|[\\x00-\\x7f]{0,20}") {
        let mut json = Vec::new();
        write_string(&mut json, &string);
        prop_assert_eq!(Cursor::new(&json).unwrap().string().unwrap(), string.as_str());
        prop_assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), string);
    }
}
