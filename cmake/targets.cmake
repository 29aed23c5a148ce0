# What every target shares: include paths from the root, warnings as errors, sanitizers.
add_library(sparsekv_options INTERFACE)
target_include_directories(sparsekv_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(sparsekv_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-Wshadow;-Wnon-virtual-dtor>"
  "$<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers;-fno-omit-frame-pointer>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror,-Wno-missing-field-initializers>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>")
# One value per operation on every machine: fused multiply-adds happen only where the code asks for them.
target_compile_options(sparsekv_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>")
if(SPARSEKV_SANITIZE)
  target_compile_options(sparsekv_options INTERFACE -fsanitize=${SPARSEKV_SANITIZE}
                                                    -fno-sanitize-recover=all)
  target_link_options(sparsekv_options INTERFACE -fsanitize=${SPARSEKV_SANITIZE})
  if(SPARSEKV_SANITIZE STREQUAL "thread")
    target_compile_options(sparsekv_options INTERFACE -Wno-tsan)  # atomic_thread_fence inside Boost
  endif()
endif()

# sparsekv_library(NAME name SRCS a.cc ... DEPS target ...)
function(sparsekv_library)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_library(${ARG_NAME} STATIC ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PUBLIC ${ARG_DEPS} sparsekv_options)
endfunction()

# sparsekv_binary(NAME name SRCS main.cc DEPS target ...): lands in build/bin
function(sparsekv_binary)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} sparsekv_options)
endfunction()

# Builds the tests labelled small and what they need, nothing else: what runs under sanitizers.
add_custom_target(small_tests)

# sparsekv_test(NAME name SRCS a_test.cc ... DEPS target ... [LABELS small|process|gpu] [TIMEOUT s])
function(sparsekv_test)
  cmake_parse_arguments(ARG "" "NAME;TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  set_target_properties(${ARG_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_compile_definitions(${ARG_NAME} PRIVATE SPARSEKV_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
                                                 SPARSEKV_BIN_DIR="${CMAKE_BINARY_DIR}/bin")
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} sparsekv_options GTest::gtest_main)
  # Tests need not be fast, they need to be built fast. GCC 12 warns of overlaps in std::string's own
  # code that are not there (GCC bug 105651).
  target_compile_options(${ARG_NAME} PRIVATE -O1 -Wno-restrict)
  if(SPARSEKV_SANITIZE)  # and then it takes members of an empty std::optional for read
    target_compile_options(${ARG_NAME} PRIVATE -Wno-maybe-uninitialized)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
  if("small" IN_LIST ARG_LABELS)
    add_dependencies(small_tests ${ARG_NAME})
  endif()
  set_tests_properties(${ARG_NAME} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
