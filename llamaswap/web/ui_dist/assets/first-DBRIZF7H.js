import{a}from"./chunk-EPRMGJVR.js";import"./chunk-SY64DK3O.js";import"./chunk-WOYQU2ZE.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
