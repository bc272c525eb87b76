// The library's face: plain C functions, each of which calls the chosen variant's kernel.

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "abi.h"
#include "board.h"
#include "pack.h"
#include "pool.h"
#include "training.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace oneroof {

#define X(name)                \
  namespace name {             \
  extern const Kernels kernels; \
  }
ONEROOF_EACH_VARIANT
#undef X

namespace {

#define X(name) &name::kernels,
const Kernels* const all[] = {ONEROOF_EACH_VARIANT};
#undef X

#define X(name) #name " "
const char names[] = ONEROOF_EACH_VARIANT;
#undef X

const Kernels* active = all[0];

bool allow(const char* name) {
#if defined(ONEROOF_EMULATE_AMX)
  return name != nullptr;
#endif
  if (std::strcmp(name, "amx") != 0) return true;
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;  // arch/x86/include/uapi/asm/prctl.h
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

const Kernels* find(const char* name) {
  for (const Kernels* kernels : all) {
    if (std::strcmp(kernels->name, name) == 0) return allow(name) ? kernels : nullptr;
  }
  return nullptr;
}

}  // namespace

EXPORT const char* oneroof_variants() { return names; }

EXPORT int oneroof_check(const char* variant) {
  const Kernels* kernels = find(variant);
  return kernels ? kernels->check() : -1;
}

EXPORT int oneroof_select(const char* variant) {
  const Kernels* kernels = find(variant);
  if (!kernels) return -1;
  active = kernels;
  return 0;
}

EXPORT void oneroof_set_threads(int threads) { set_thread_count(threads); }
EXPORT int oneroof_threads() { return threads_chosen() ? thread_count() : 0; }  // 0: not chosen yet

EXPORT void oneroof_linear(const Product* p) { active->linear(*p); }
EXPORT void oneroof_gated(const Product* p) { active->gated(*p); }
EXPORT void oneroof_mixture(const Mixture* m) { active->mixture(*m); }
EXPORT void oneroof_attention(const Attention* a) { active->attention(*a); }
EXPORT void oneroof_rms_norm(const Norm* n) { active->rms_norm(*n); }
EXPORT void oneroof_heads(const Heads* h) { active->heads(*h); }
EXPORT void oneroof_swiglu(const Swiglu* s) { active->swiglu(*s); }
EXPORT void oneroof_route(const Routing* r) { active->route(*r); }
EXPORT void oneroof_blend(const Blend* b) { active->blend(*b); }
EXPORT void oneroof_waves(const Waves* w) { active->waves(*w); }
EXPORT void oneroof_draw(const Drawing* d) { active->draw(*d); }
EXPORT void oneroof_likeliest(const Likeliest* l) { active->likeliest(*l); }
EXPORT void oneroof_total(const Total* t) { active->total(*t); }
EXPORT void oneroof_columns(const Columns* c) { active->side_by_side(*c); }
EXPORT int oneroof_tell(Board* b, const void* said, int64_t bytes) {  // to all others; 0: somebody has died
  auto turn = static_cast<uint32_t>(++b->turn);
  if (!await_all(*b, turn - 1)) return 0;
  char* place = b->place(b->rank, turn);
  std::memcpy(place, &bytes, 8);
  std::memcpy(place + 8, said, bytes);
  count_up(*b, turn);
  return 1;
}
EXPORT int64_t oneroof_hear(Board* b, int64_t speaker, void* heard) {  // its bytes; -1: somebody has died
  auto turn = static_cast<uint32_t>(++b->turn);
  if (!await_rank(*b, speaker, turn)) return -1;
  int64_t bytes;
  const char* place = b->place(speaker, turn);
  std::memcpy(&bytes, place, 8);
  std::memcpy(heard, place + 8, bytes);
  count_up(*b, turn);
  return bytes;
}
EXPORT void oneroof_end(const Board* b) { end_all(*b); }
EXPORT int oneroof_lookup(const Weight* w, const int64_t* tokens, int64_t count, void* y, int32_t y_type) {
  return active->lookup(*w, tokens, count, y, y_type);
}
EXPORT void oneroof_run(const Command* commands, int64_t count, const Patch* patches, int64_t places,
                        const int64_t* values) {
  for (int64_t i = 0; i < places; i++) *patches[i].field = values[patches[i].value] + patches[i].offset;
  for (int64_t i = 0; i < count; i++) commands[i].kernel(commands[i].structure);
}
EXPORT double oneroof_read_memory(const void* data, int64_t bytes) { return active->read_memory(data, bytes); }
EXPORT double oneroof_multiply_add(int64_t rounds) { return active->multiply_add(rounds); }
EXPORT void oneroof_multiply(const Gemm* g) { active->training->multiply(*g); }
EXPORT void oneroof_gather(const Gather* g) { active->training->gather(*g); }
EXPORT void oneroof_gate(const Gate* g) { active->training->gate(*g); }
EXPORT void oneroof_pack(const void* rows, int64_t stride, int64_t first, int64_t count, int64_t dim, int32_t kind,
                         void* panels) {
  pack_rows(rows, stride, first, count, dim, kind, panels);
}
EXPORT void oneroof_unpack(const void* panels, int64_t first, int64_t count, int64_t dim, int32_t kind, void* rows) {
  unpack_rows(panels, first, count, dim, kind, rows);
}

}  // namespace oneroof
