//! Sends sixteen numbers to a model that gives them back:
//! `cargo run --package nereid-ring-client --example identity -- SOCKET MODEL`.

use nereid_ring_client::{DataType, Error, Options, Request, Ring, Tensor};

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(model)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: identity SOCKET MODEL");
        std::process::exit(2);
    };
    let mut ring = Ring::connect(path, &Options::default())?;
    let mut input = ring.allocate(64)?;
    for (number, place) in input.chunks_exact_mut(4).enumerate() {
        place.copy_from_slice(&(number as f32).to_le_bytes());
    }
    let area = ring.allocate(4096)?;
    let tensor = Tensor {
        name: "INPUT0",
        datatype: DataType::Fp32,
        dims: [16].into_iter().collect(),
        data: input.span(),
    };
    let request = Request {
        model: &model,
        area: area.span(),
        inputs: [tensor].into_iter().collect(),
        ..Request::default()
    };
    let completion = ring.infer(&request, vec![input, area])?;
    for output in &completion.answer()?.outputs {
        let bytes = completion.tensor(output.data).unwrap_or_default();
        let numbers: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|number| f32::from_le_bytes([number[0], number[1], number[2], number[3]]))
            .collect();
        println!("{} {:?}: {numbers:?}", output.name, output.dims);
    }
    Ok(())
}
