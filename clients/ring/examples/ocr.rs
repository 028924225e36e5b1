//! Prints the text in a picture file, which the ensemble `ocr` of the examples reads:
//! `cargo run --package nereid-ring-client --example ocr -- SOCKET PICTURE`.

use std::{error::Error, fs, process::ExitCode};

use nereid_ring_client::{Completion, DataType, Options, Request, Ring, Tensor};

const AREA_BYTES: usize = 1 << 16;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(picture)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: ocr SOCKET PICTURE");
        return ExitCode::from(2);
    };
    match read(&path, &picture) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(path: &str, picture: &str) -> Result<(), Box<dyn Error>> {
    let mut ring = Ring::connect(path, &Options::default())?;
    let file = fs::read(picture)?;
    // A string stands behind its length.
    let length = u32::try_from(file.len())?.to_le_bytes();
    let mut input = ring.allocate(length.len() + file.len())?;
    let (head, body) = input.split_at_mut(length.len());
    head.copy_from_slice(&length);
    body.copy_from_slice(&file);

    let area = ring.allocate(AREA_BYTES)?;
    let tensor = Tensor {
        name: "file",
        datatype: DataType::Bytes,
        dims: [1].into_iter().collect(),
        data: input.span(),
    };
    let request = Request {
        model: "ocr",
        area: area.span(),
        inputs: [tensor].into_iter().collect(),
        ..Request::default()
    };
    let completion = ring.infer(&request, vec![input, area])?;
    let mut texts = output(&completion, "text")?;
    let (confidences, boxes) = (output(&completion, "confidence")?, output(&completion, "box")?);
    for (confidence, sides) in confidences.chunks_exact(4).zip(boxes.chunks_exact(16)) {
        let confidence = f32::from_le_bytes(confidence.try_into()?);
        let (length, rest) = texts.split_first_chunk().ok_or("a text is cut short")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (line, rest) = rest.split_at_checked(length).ok_or("a text is cut short")?;
        texts = rest;
        let sides: Vec<String> = sides
            .chunks_exact(4)
            .map(|side| Ok(i32::from_le_bytes(side.try_into()?).to_string()))
            .collect::<Result<_, std::array::TryFromSliceError>>()?;
        let (line, sides) = (String::from_utf8_lossy(line), sides.join(", "));
        println!("{line}  ({:.1}% at ({sides}))", 100.0 * confidence);
    }
    Ok(())
}

/// The bytes of an output.
fn output<'a>(completion: &'a Completion, name: &str) -> Result<&'a [u8], Box<dyn Error>> {
    let answer = completion.answer()?;
    let found = answer.outputs.iter().find(|output| output.name == name);
    let bytes = found.and_then(|output| completion.tensor(output.data));
    bytes.ok_or_else(|| format!("the model has no output '{name}'").into())
}
