use std::borrow::Cow;

use smallvec::SmallVec;

use super::{RANK_MAX, TENSORS_MAX, Tail, elements, members};
use crate::{
    inference::{DataType, Error, InferInput, RegionRange, RequestedOutput, Rope, Shape},
    ingress::http::json::Cursor,
};

/// Reads the array of inputs and takes what they have in binary form from the tail.
pub fn inputs(
    cursor: &mut Cursor<'_>,
    model: &str,
    tail: &mut Tail<'_>,
    inputs: &mut SmallVec<[InferInput; 2]>,
) -> Result<(), Error> {
    members::array(cursor, "inputs", |cursor| {
        check_count("inputs", inputs.len())?;
        let mut reader = InputReader::default();
        members::object(cursor, |cursor, name| reader.member(cursor, name))?;
        inputs.push(reader.finish(model, tail)?);
        Ok(())
    })
}

/// Reads the array of requested outputs.
pub fn outputs(
    cursor: &mut Cursor<'_>,
    outputs: &mut SmallVec<[RequestedOutput; 2]>,
) -> Result<(), Error> {
    members::array(cursor, "outputs", |cursor| {
        check_count("outputs", outputs.len())?;
        outputs.push(output(cursor)?);
        Ok(())
    })
}

/// The members of one input, as far as they were met.
#[derive(Default)]
struct InputReader<'a> {
    name: Option<Cow<'a, str>>,
    datatype: Option<Cow<'a, str>>,
    shape: Option<Shape>,
    /// How many dimensions there are; the shape has no more than may be.
    rank: usize,
    binary_data_size: Option<u64>,
    place: Place<'a>,
    data: Option<Data<'a>>,
}

/// Where a tensor lies by its parameters, if that is in shared memory.
#[derive(Default)]
struct Place<'a> {
    region: Option<Cow<'a, str>>,
    offset: u64,
    byte_size: u64,
}

impl<'a> Place<'a> {
    fn member(&mut self, cursor: &mut Cursor<'a>, name: &str) -> Result<(), Error> {
        match name {
            "shared_memory_region" => self.region = Some(members::string(cursor, name)?),
            "shared_memory_offset" => self.offset = members::unsigned(cursor, name)?,
            "shared_memory_byte_size" => self.byte_size = members::unsigned(cursor, name)?,
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    }

    fn range(self) -> Option<Box<RegionRange>> {
        let region = self.region?.as_ref().into();
        Some(Box::new(RegionRange { region, offset: self.offset, byte_size: self.byte_size }))
    }
}

/// The member `data`: read already if name, type and shape came before it, or its place.
enum Data<'a> {
    Read(Vec<u8>),
    At(Cursor<'a>),
}

impl<'a> InputReader<'a> {
    fn member(&mut self, cursor: &mut Cursor<'a>, name: &str) -> Result<(), Error> {
        match name {
            "name" if self.name.is_none() => self.name = Some(members::string(cursor, "name")?),
            "datatype" if self.datatype.is_none() => {
                self.datatype = Some(members::string(cursor, "datatype")?);
            }
            "shape" if self.shape.is_none() => {
                let (shape, rank) = shape(cursor)?;
                (self.shape, self.rank) = (Some(shape), rank);
            }
            "parameters" => members::object(cursor, |cursor, name| {
                match name {
                    "binary_data_size" if self.binary_data_size.is_none() => {
                        let size = members::unsigned(cursor, "binary_data_size")?;
                        self.binary_data_size = Some(size);
                    }
                    _ => self.place.member(cursor, name)?,
                }
                Ok(())
            })?,
            "data" if self.data.is_none() => {
                self.data = Some(match (&self.name, &self.datatype, &self.shape) {
                    (Some(name), Some(datatype), Some(shape)) => {
                        check_rank(name, self.rank)?;
                        let datatype = parse_datatype(name, datatype)?;
                        Data::Read(elements::read(cursor, name, datatype, shape)?)
                    }
                    _ => Data::At(cursor.skip()?),
                });
            }
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    }

    fn finish(self, model: &str, tail: &mut Tail<'_>) -> Result<InferInput, Error> {
        self.check_one_source()?;
        let name = self.name.ok_or_else(|| members::missing("name"))?;
        let datatype = self.datatype.ok_or_else(|| members::missing("datatype"))?;
        let shape = self.shape.ok_or_else(|| members::missing("shape"))?;
        check_rank(&name, self.rank)?;
        let datatype = parse_datatype(&name, &datatype)?;
        let data = match (self.data, self.binary_data_size) {
            (Some(Data::Read(elements)), _) => elements.into(),
            (Some(Data::At(mut cursor)), _) => {
                elements::read(&mut cursor, &name, datatype, &shape)?.into()
            }
            (None, Some(size)) => tail.take(size).map_err(|missing| {
                Error::malformed(format!(
                    "unexpected size for input '{name}', expecting {missing} additional bytes for \
                     model '{model}'"
                ))
            })?,
            (None, None) => Rope::default(),
        };
        let mut input = InferInput::new(name.as_ref(), datatype, shape, data);
        input.source = self.place.range();
        Ok(input)
    }

    fn check_one_source(&self) -> Result<(), Error> {
        let sources = [
            (self.data.is_some(), " 'data'"),
            (self.binary_data_size.is_some(), " 'binary_data_size'"),
            (self.place.region.is_some(), " 'shared_memory_region'"),
        ];
        let set = sources.iter().filter(|(set, _)| *set);
        let said = match set.clone().count() {
            1 => return Ok(()),
            0 => " no field is set".to_owned(),
            _ => set.fold(" set".to_owned(), |said, (_, name)| said + name),
        };
        Err(Error::malformed(format!(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in \
             'parameters', 'shared_memory_region' in 'parameters'. But{said}"
        )))
    }
}

fn output<'a>(cursor: &mut Cursor<'a>) -> Result<RequestedOutput, Error> {
    let mut output_name = None;
    let mut binary = None;
    let mut classification = None;
    let mut place = Place::default();
    members::object(cursor, |cursor, name| {
        match name {
            "name" if output_name.is_none() => output_name = Some(members::string(cursor, "name")?),
            "parameters" => members::object(cursor, |cursor, name| {
                match name {
                    "binary_data" => binary = Some(members::boolean(cursor, "binary_data")?),
                    "classification" => {
                        let count = members::unsigned_to("set", cursor, "classification")?;
                        classification = Some(count);
                    }
                    _ => place.member(cursor, name)?,
                }
                Ok(())
            })?,
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    })?;
    let name = output_name.ok_or_else(|| members::missing("name"))?;
    let target = place.range();
    let other = match (classification, binary) {
        _ if target.is_none() => None,
        (Some(_), _) => Some("classification"),
        (None, Some(true)) => Some("binary_data"),
        _ => None,
    };
    if let Some(other) = other {
        return Err(Error::malformed(format!(
            "Output can't set both 'shared_memory_region' and '{other}'"
        )));
    }
    let classes = classification.unwrap_or(0);
    Ok(RequestedOutput {
        name: name.as_ref().into(),
        classification: u32::try_from(classes).map_err(|_| {
            Error::malformed(format!(
                "Unable to parse 'classification': output '{name}' asks for {classes} classes, \
                 expected at most {}",
                u32::MAX
            ))
        })?,
        // An output that is named and says nothing travels as JSON whatever the request's default
        // is: that default is for outputs that are not named.
        binary: Some(binary.unwrap_or(false)),
        target,
    })
}

/// A shape, and how many dimensions there are. Of more than may be the first are kept: whose shape it
/// is may be known only later.
fn shape(cursor: &mut Cursor<'_>) -> Result<(Shape, usize), Error> {
    let (mut shape, mut rank) = (Shape::scalar(), 0);
    members::array(cursor, "shape", |cursor| {
        let dim = members::unsigned(cursor, "shape")?;
        let dim = i64::try_from(dim).map_err(|_| {
            Error::malformed(format!(
                "Unable to parse 'shape': dimension {dim} is larger than {}",
                i64::MAX
            ))
        })?;
        rank += 1;
        if rank <= RANK_MAX {
            shape.push(dim);
        }
        Ok(())
    })?;
    Ok((shape, rank))
}

fn check_rank(input: &str, rank: usize) -> Result<(), Error> {
    if rank <= RANK_MAX {
        return Ok(());
    }
    Err(Error::malformed(format!(
        "Unable to parse 'shape': input '{input}' has {rank} dimensions, expected at most {RANK_MAX}"
    )))
}

fn parse_datatype(input: &str, name: &str) -> Result<DataType, Error> {
    name.parse().map_err(|_| Error::malformed(format!("invalid datatype for input {input}")))
}

fn check_count(what: &str, count: usize) -> Result<(), Error> {
    if count < TENSORS_MAX {
        return Ok(());
    }
    Err(Error::malformed(format!("a request may have {TENSORS_MAX} {what}, got more")))
}
