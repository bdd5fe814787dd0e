import{a}from"./chunk-JIX45NBO.js";import"./chunk-5ZDZVUUE.js";import"./chunk-6NQICORH.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
