# Writes OUTPUT, a header that names the revision of SOURCE, if that is not what it says already.
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
                OUTPUT_VARIABLE REVISION OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
                RESULT_VARIABLE FAILED)
if(FAILED)
  set(REVISION unknown)
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT
"#pragma once

namespace sparsekv {
inline constexpr char kGitRevision[] = \"@REVISION@\";
}
" @ONLY)
