#include "coordinator/tokenizer/sentencepiece_file.h"

#include <bit>
#include <cmath>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "base/concat.h"
#include "base/json_file.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/json_cursor.h"
#include "coordinator/tokenizer/protobuf_reader.h"
#include "coordinator/tokenizer/tokenizer_spec.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

using Field = ProtobufReader::Field;
using Spec = SentencePieceSpec;

// Field numbers of sentencepiece_model.proto.
enum ModelField { kPieces = 1, kTrainerSpec = 2, kNormalizerSpec = 3 };
enum PieceField { kText = 1, kScore = 2, kType = 3 };
enum TrainerField {
  kModelType = 3,
  kWhitespaceAsSuffix = 24,
  kByteFallback = 35,
  kBosId = 41,
  kEosId = 42
};
enum NormalizerField { kCharsMap = 2, kDummyPrefix = 3, kRemoveExtra = 4, kEscape = 5 };

class Parser {
 public:
  absl::StatusOr<Spec> Run(std::string_view bytes) {
    ForEach(bytes, [this](const Field& field) {
      if (field.kind != Field::Kind::kBytes) return;
      if (field.number == kPieces) AddPiece(field.bytes);
      if (field.number == kTrainerSpec) Trainer(field.bytes);
      if (field.number == kNormalizerSpec) Normalizer(field.bytes);
    });
    if (status_.ok()) CheckWhole();
    if (!status_.ok()) return status_;
    return std::move(spec_);
  }

 private:
  template <typename Take>
  void ForEach(std::string_view bytes, const Take& take) {
    ProtobufReader reader(bytes);
    for (Field field; status_.ok() && reader.Next(&field);) take(field);
    if (reader.failed()) Fail("not a sentencepiece model: broken protocol buffer");
  }

  void Fail(std::string_view what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(Concat(what));
  }
  void Refuse(std::string_view what) {
    if (status_.ok()) status_ = absl::UnimplementedError(Concat(what, " is not supported"));
  }

  void AddPiece(std::string_view bytes) {
    const std::string name = Concat("pieces[", spec_.pieces.size(), "]");
    if (spec_.pieces.size() == kMaxTokenIds) return Fail(Concat("more than ", kMaxTokenIds));
    Spec::Piece piece;
    ForEach(bytes, [&](const Field& field) {
      if (field.number == kText && field.kind == Field::Kind::kBytes) piece.text = field.bytes;
      if (field.number == kScore && field.kind == Field::Kind::kFixed32) {
        piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
      }
      if (field.number == kType && field.kind == Field::Kind::kVarint) {
        if (field.value < 1 || field.value > 6) Refuse(Concat(name, ".type ", field.value));
        piece.type = static_cast<Spec::Type>(field.value);
      }
    });
    const bool is_text = ValidUtf8Prefix(piece.text) == piece.text.size();
    if (piece.text.empty() || piece.text.size() > kMaxPieceBytes || !is_text) {
      return Fail(Concat(name, ".piece is not 1 to ", kMaxPieceBytes, " bytes of UTF-8"));
    }
    if (!std::isfinite(piece.score)) return Fail(Concat(name, ".score is not a finite number"));
    spec_.pieces.push_back(std::move(piece));
  }

  void Trainer(std::string_view bytes) {
    ForEach(bytes, [this](const Field& field) {
      if (field.kind != Field::Kind::kVarint) return;
      if (field.number == kModelType) {
        if (field.value != 1 && field.value != 2) {
          Refuse(Concat("trainer_spec.model_type ", field.value));
        }
        spec_.algorithm = static_cast<Spec::Algorithm>(field.value);
      }
      if (field.number == kWhitespaceAsSuffix && field.value != 0) {
        Refuse("trainer_spec.treat_whitespace_as_suffix true");
      }
      if (field.number == kByteFallback) spec_.byte_fallback = field.value != 0;
      if (field.number == kBosId) bos_id_ = field.value;
      if (field.number == kEosId) eos_id_ = field.value;
    });
  }

  void Normalizer(std::string_view bytes) {
    ForEach(bytes, [this](const Field& field) {
      if (field.number == kCharsMap && !field.bytes.empty()) {
        Refuse("normalizer_spec.precompiled_charsmap");
      }
      if (field.kind != Field::Kind::kVarint) return;
      if (field.number == kDummyPrefix) spec_.add_dummy_prefix = field.value != 0;
      if (field.number == kRemoveExtra) spec_.remove_extra_whitespaces = field.value != 0;
      if (field.number == kEscape && field.value == 0) {
        Refuse("normalizer_spec.escape_whitespaces false");
      }
    });
  }

  void CheckWhole() {
    absl::flat_hash_set<std::string_view> texts;
    size_t unknowns = 0;
    std::vector<bool> bytes(256);
    for (uint32_t id = 0; id < spec_.pieces.size(); ++id) {
      const Spec::Piece& piece = spec_.pieces[id];
      const auto at = [&] { return Concat("pieces[", id, "] ", Shown(piece.text)); };
      if (!texts.insert(piece.text).second) return Fail(Concat(at(), " appears twice"));
      if (piece.type == Spec::Type::kUnknown) {
        spec_.unk_id = id;
        ++unknowns;
      }
      if (piece.type != Spec::Type::kByte) continue;
      const std::optional<uint8_t> byte = ByteOfFallbackToken(piece.text);
      if (!byte || !spec_.byte_fallback) return Fail(Concat(at(), " is no byte piece"));
      bytes[*byte] = true;
    }
    if (unknowns != 1) return Fail(Concat("has ", unknowns, " unknown pieces and not one"));
    for (int byte = 0; byte < 256 && spec_.byte_fallback; ++byte) {
      const std::string name = FallbackTokenOfByte(static_cast<uint8_t>(byte));
      if (!bytes[byte]) return Fail(Concat("byte_fallback is on, but there is no piece ", name));
    }
    spec_.bos_id = ControlId(bos_id_);
    spec_.eos_id = ControlId(eos_id_);
  }

  std::optional<uint32_t> ControlId(uint64_t id) const {
    if (id >= spec_.pieces.size()) return std::nullopt;  // -1: there is none
    if (spec_.pieces[id].type != Spec::Type::kControl) return std::nullopt;
    return static_cast<uint32_t>(id);
  }

  Spec spec_;
  uint64_t bos_id_ = 1;
  uint64_t eos_id_ = 2;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<SentencePieceSpec> ParseSentencePieceModel(std::string_view bytes) {
  return Parser().Run(bytes);
}

absl::StatusOr<SentencePieceSpec> ReadSentencePieceModel(const std::string& path) {
  const absl::StatusOr<std::string> bytes = ReadRegularFile(path, kMaxJsonFileBytes);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<SentencePieceSpec> spec = ParseSentencePieceModel(*bytes);
  if (spec.ok()) return spec;
  return absl::Status(spec.status().code(), Concat(path, ": ", spec.status().message()));
}

}  // namespace sparsekv::tokenizer
